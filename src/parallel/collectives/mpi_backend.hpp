// Collectives of CPU tensors through MPI.
#pragma once

#include "parallel/collectives/backend.hpp"

namespace athanor::parallel {

namespace detail {
struct CommunicatorState;
}

/// Moves bytes by the algorithms that the group's table chooses (algorithm_table.hpp); never adds
/// floating-point numbers (contract 6). Counts beyond int are handled by pieces or larger units, or refused
/// by a checked cast. Throws CommError when MPI reports an error and InternalError for a tensor that is not
/// on the CPU or not contiguous.
class MpiBackend final : public CollectiveBackend {
 public:
  /// `state` must outlive this.
  explicit MpiBackend(const detail::CommunicatorState& state) : state_(state) {}

  void exchange(std::span<const MutableBytes> receive, std::span<const Bytes> send,
                at::Device device) override;
  std::unique_ptr<StartedExchange> start_exchange(std::span<const MutableBytes> receive,
                                                  std::span<const Bytes> send, at::Device device) override;
  /// `input` may be this rank's part of `output`; other overlaps are not allowed.
  void all_gather_v(at::Tensor& output, const at::Tensor& input, std::span<const std::int64_t> rows) override;
  /// A sum of bools is their disjunction.
  void all_reduce_integers(at::Tensor& tensor, ReduceOp op) override;
  void broadcast(at::Tensor& tensor, int root) override;
  void barrier() override;

 private:
  const detail::CommunicatorState& state_;
};

}  // namespace athanor::parallel
