#include "distill/link/detail/link_wire.hpp"

#include <cstring>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/hash.hpp"

namespace athanor::distill::detail {

int packet_tag(std::int64_t piece) {
  return base::checked_cast<int>(piece + 1, "a packet's tag");
}

parallel::ByteBuffer make_credit(std::int64_t step) {
  parallel::ByteBuffer bytes(credit_bytes);
  const std::uint64_t hash = base::hash_bytes(&step, sizeof(step));
  std::memcpy(bytes.data(), &step, sizeof(step));
  std::memcpy(bytes.data() + sizeof(step), &hash, sizeof(hash));
  return bytes;
}

std::int64_t read_credit(const parallel::ByteBuffer& bytes, int receiver, int sender) {
  std::int64_t step = 0;
  std::uint64_t hash = 0;
  if (bytes.size() == credit_bytes) {
    std::memcpy(&step, bytes.data(), sizeof(step));
    std::memcpy(&hash, bytes.data() + sizeof(step), sizeof(hash));
  }
  if (bytes.size() != credit_bytes || hash != base::hash_bytes(&step, sizeof(step))) {
    throw base::CommError(
        "bad credit from student rank {} to teacher rank {} ({} bytes, as step {}) both must run the same "
        "program; if they do, check network and memory of both hosts",
        receiver, sender, bytes.size(), step);
  }
  return step;
}

bool wait_on_link(parallel::PointToPoint& wire, const LinkOptions& options,
                  const std::function<bool()>& is_ready) {
  const auto look = [&] {
    const bool ready = is_ready();
    if (!ready && options.while_waiting) {
      options.while_waiting();
    }
    return ready;
  };
  return wire.wait_until(look, options.deadline_s);
}

const std::vector<Route>& RouteCache::of(const std::shared_ptr<const LinkPlan>& plan) {
  const auto found = routes_.find(plan);
  if (found != routes_.end()) {
    return found->second;
  }
  return routes_
      .emplace(plan, end_ == LinkEnd::sender ? plan->routes_from(role_rank_) : plan->routes_to(role_rank_))
      .first->second;
}

}  // namespace athanor::distill::detail
