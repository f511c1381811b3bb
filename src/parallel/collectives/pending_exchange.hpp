// An exchange of tensors between the ranks of a group, under way while the host does something else.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel {

/// Handle of one exchange; move-only. It keeps the tensors alive. The communicator must outlive it. Over MPI
/// nothing moves unless this rank calls MPI, be it test() or any collective.
class PendingExchange {
 public:
  /// Nothing under way.
  PendingExchange();
  /// Gives up what has not ended. Memory that may still be written to then stays until the process ends.
  ~PendingExchange();
  PendingExchange(PendingExchange&&) noexcept;
  PendingExchange& operator=(PendingExchange&&) noexcept;
  PendingExchange(const PendingExchange&) = delete;
  PendingExchange& operator=(const PendingExchange&) = delete;

  bool is_under_way() const { return state_ != nullptr; }
  /// Moves it along without waiting; whether it has ended (the tensors may be read then). Throws CommError.
  bool test();
  /// Blocks the host until it has ended, with device memory the current stream instead; at once when nothing
  /// is under way. Throws CommError.
  void wait();

 private:
  friend PendingExchange start_exchange(std::vector<at::Tensor>, std::vector<at::Tensor>, const Communicator&,
                                        Traffic, base::CallSite);
  struct State;
  static void announce(const State& state, const Communicator& comm, std::int64_t bytes);
  std::unique_ptr<State> state_;
};

/// Starts sending send[r] to rank r and receiving receive[r] from it, for every other rank r, and returns.
/// The tensors are contiguous, and receive[r] here has the bytes of send[this rank] there; this rank's
/// entries are not looked at, nor are any in a group of one. All ranks start the exchanges of a communicator
/// in one order, each when it likes: nobody waits here, so there is no circle of waiting ranks as long as a
/// rank that waits has started everything that the others wait for meanwhile. Give exchanges a communicator
/// of their own: backends may order them with its blocking collectives. Bytes count as `purpose` when it
/// starts, seconds whenever the host is in one of these calls.
PendingExchange start_exchange(std::vector<at::Tensor> receive, std::vector<at::Tensor> send,
                               const Communicator& comm, Traffic purpose,
                               base::CallSite site = base::CallSite::current());

}  // namespace athanor::parallel
