// One NCCL communicator: its start, its errors, its end.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/stopwatch.hpp"
#include "parallel/nccl/nccl_api.hpp"
#include "parallel/nccl/nccl_runtime.hpp"

namespace athanor::parallel {

/// One operation of a group, for messages and deadlines.
struct NcclOperation {
  std::string_view name;    ///< of static storage
  std::int64_t number = 0;  ///< of this rank's on the group, from 1
  double deadline_s = 0.0;
  base::Stopwatch since{};
};

/// Every failure goes the same way: the node is told, all groups are aborted, and a CommError names
/// operation, number, group and rank.
class NcclComm {
 public:
  /// The ranks meet over MPI, rank 0 hands out the unique id, all initialise, and agree that all did. `state`
  /// and `runtime` must outlive this. Collective. Throws CommError, on every rank that came, when one does
  /// not come, has another version or other settings of NCCL, or cannot initialise.
  NcclComm(const detail::CommunicatorState& state, NcclRuntime& runtime);
  /// Finalises and frees it within the deadline of the start; aborts it while an error unwinds the stack.
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  NcclCommHandle handle() const { return comm_; }
  /// Numbers the next operation. Throws the first failure when there was one.
  NcclOperation begin(std::string_view name);
  /// Fails unless the call succeeded or is being made.
  void check(const NcclOperation& operation, NcclCode code, std::string_view call);
  /// Returns when all that was called is enqueued; fails when NCCL reports an error, or at the deadline.
  void settle(const NcclOperation& operation);
  /// The host waits for the event, looking for errors of this communicator and of the node.
  void wait(const NcclOperation& operation, device::EventHandle event);
  /// Whether the event has passed; fails for the reasons of wait().
  bool test(const NcclOperation& operation, device::EventHandle event);
  [[noreturn]] void fail(const NcclOperation& operation, std::string_view reason);

  void abort() noexcept;
  bool is_aborted() const { return is_aborted_; }

 private:
  std::string join();
  void initialise(const std::string& id_text);
  std::string finish() noexcept;

  const detail::CommunicatorState& state_;
  NcclRuntime& runtime_;
  NcclApi& api_;
  NcclCommHandle comm_ = nullptr;
  std::int64_t operations_ = 0;
  bool is_aborted_ = false;
};

}  // namespace athanor::parallel
