// What both ends of the link agree on besides the plan: tags and the form of a credit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "distill/link/credit_window.hpp"
#include "distill/link/link_plan.hpp"
#include "distill/link/teacher_link.hpp"
#include "parallel/point_to_point.hpp"

namespace athanor::distill::detail {

inline constexpr int credit_tag = 0;
/// Packets of one piece number have one tag; those of successive steps are matched in order.
int packet_tag(std::int64_t piece);

/// A credit as it travels: step, fingerprint, and the hash of both.
parallel::ByteBuffer make_credit(const Credit& credit);
/// Throws CommError naming both ranks when the bytes are not a credit.
Credit read_credit(const parallel::ByteBuffer& bytes, int receiver, int sender);

/// Takes every chance to move on until `is_ready()` holds. Returns whether it held within the deadline of
/// the options.
bool wait_on_link(parallel::PointToPoint& wire, const LinkOptions& options,
                  const std::function<bool()>& is_ready);

/// Whose routes.
enum class LinkEnd { sender, receiver };

/// Routes of one rank, computed once for each plan that it meets.
class RouteCache {
 public:
  RouteCache(LinkEnd end, int role_rank) : end_(end), role_rank_(role_rank) {}
  const std::vector<Route>& of(const std::shared_ptr<const LinkPlan>& plan);

 private:
  LinkEnd end_;
  int role_rank_;
  std::map<std::shared_ptr<const LinkPlan>, std::vector<Route>> routes_;
};

}  // namespace athanor::distill::detail
