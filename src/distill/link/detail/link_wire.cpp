#include "distill/link/detail/link_wire.hpp"

#include <array>
#include <cstring>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/hash.hpp"

namespace athanor::distill::detail {

int packet_tag(std::int64_t piece) {
  return base::checked_cast<int>(piece + 1, "a packet's tag");
}

parallel::ByteBuffer make_credit(const Credit& credit) {
  std::array<std::uint64_t, 3> words = {static_cast<std::uint64_t>(credit.step), credit.fingerprint, 0};
  words[2] = base::hash_bytes(words.data(), 2 * sizeof(words[0]));
  static_assert(sizeof(words) == credit_bytes);
  parallel::ByteBuffer bytes(sizeof(words));
  std::memcpy(bytes.data(), words.data(), sizeof(words));
  return bytes;
}

Credit read_credit(const parallel::ByteBuffer& bytes, int receiver, int sender) {
  std::array<std::uint64_t, 3> words{};
  if (bytes.size() == sizeof(words)) {
    std::memcpy(words.data(), bytes.data(), sizeof(words));
  }
  if (bytes.size() != sizeof(words) || words[2] != base::hash_bytes(words.data(), 2 * sizeof(words[0]))) {
    throw base::CommError(
        "bad credit from student rank {} to teacher rank {} ({} bytes, as step {}) both must run the same "
        "program; if they do, check network and memory of both hosts",
        receiver, sender, bytes.size(), words[0]);
  }
  return {static_cast<std::int64_t>(words[0]), words[1]};
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
