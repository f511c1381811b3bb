// Debug mode: every collective is compared over its group before it runs, so that a mismatch is an error that
// names both calls instead of a hang or wrong numbers.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/communicator.hpp"

namespace athanor::parallel {

namespace detail {
struct CollectiveCall;
}

struct CollectiveCheckOptions {
  double deadline_s = 600.0;  ///< longest wait for the other ranks of a group to come; 0: for ever
};

/// look: whether it can be done now; wait: until it is, or the deadline.
enum class WaitMode { look, wait };

/// While it lives, the ranks of a group tell each other operation, number, element type, counts, root,
/// purpose and call site of each collective before it starts. At most one lives in a process, on all ranks
/// alike. It costs each collective one small message from every rank of the group to every other; without one
/// a collective reads a pointer. Two ranks must make the collectives that both take part in in one order,
/// whatever the groups.
class CollectiveCheck {
 public:
  /// Duplicates `world`, whose ranks are those of MPI's world; with a null one there is nothing to compare.
  /// Collective over it.
  explicit CollectiveCheck(const Communicator& world, const CollectiveCheckOptions& options = {});
  ~CollectiveCheck();
  CollectiveCheck(const CollectiveCheck&) = delete;
  CollectiveCheck& operator=(const CollectiveCheck&) = delete;

  /// The one that lives; null: none.
  static CollectiveCheck* active() noexcept;

  /// Compares this rank's call with those of the other ranks of `comm`. Throws InternalError, on all of them,
  /// naming two calls that differ and their sites; CommError naming the ranks that did not come in time.
  void compare(const Communicator& comm, const detail::CollectiveCall& call, std::int64_t number);

  /// The same for what is started now and waited for later, in whatever order: tells the others of this
  /// rank's call without waiting.
  void announce(const Communicator& comm, const detail::CollectiveCall& call, std::int64_t number);
  /// Compares the announced call of that number. Whether all others have announced theirs. Throws as
  /// compare().
  bool compare_announced(const Communicator& comm, std::int64_t number, WaitMode mode);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::parallel
