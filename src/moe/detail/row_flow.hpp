// Rows on their way to the experts of other ranks and back, a chunk at a time.
#pragma once

#include <cstddef>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/moe_options.hpp"
#include "moe/token_dispatcher.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/communicator.hpp"

namespace athanor::moe::detail {

/// The exchanges of one pass, forward or backward, of one micro-batch. With one chunk they block where they
/// are called: deliver() and take_back(). With several deliver() starts all of them; whoever computes calls
/// await(c) before it reads the rows of chunk c and give_back(c) when their results are there; take_back()
/// does what is left. Every rank makes these calls in the order of the chunks, with or without rows.
class RowFlow {
 public:
  RowFlow(const parallel::Communicator& ep, const RowWire& wire) : ep_(&ep), wire_(wire) {}

  /// Sends `outgoing` [n_sent, ...], rows as they travel, to their experts; the rows from others come to
  /// their places among the first R of `rows`. `outgoing` may be the tail of `rows`.
  void deliver(const at::Tensor& rows, const at::Tensor& outgoing, const DispatchPlan& plan);
  /// Blocks the host until the rows of chunk `c` are in their places in `rows`, the buffer of deliver().
  void await(const at::Tensor& rows, const DispatchPlan& plan, std::size_t c);
  /// Starts the return of chunk `c` of `results`, a row buffer: what this rank computed for others goes back,
  /// what others computed comes into its tail. Nothing with one chunk.
  void give_back(const at::Tensor& results, const DispatchPlan& plan, std::size_t c);
  /// Blocks the host until the tail of `results`, the buffer of give_back(), is filled.
  void take_back(const at::Tensor& results, const DispatchPlan& plan);
  /// Moves what is under way along.
  void progress();

 private:
  /// A chunk under way in one direction.
  struct Transfer {
    parallel::PendingExchange pending;
    at::Tensor received;  ///< as it travelled
    bool is_over = false;
  };
  bool is_in_chunks(const DispatchPlan& plan) const { return plan.chunks.size() > 1; }
  void receive(const DispatchPlan& plan, std::size_t c);
  void start_return(const at::Tensor& results, const DispatchPlan& plan, std::size_t c);

  const parallel::Communicator* ep_;
  RowWire wire_;
  at::Tensor rows_;      ///< to which chunks are still coming
  at::Tensor received_;  ///< all chunks of deliver()
  at::Tensor results_;   ///< of which chunks are going back
  std::vector<Transfer> out_, back_;
};

}  // namespace athanor::moe::detail
