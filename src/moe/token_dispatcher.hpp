// Brings each token's row to the ranks of its experts and the results back.
//
// Legend: T routed tokens of this rank, K choices, D width, e local experts, R rows of the local experts,
// n_sent rows this rank sends to others, n_received rows it receives from others.
//
// A row buffer is [R + n_sent, D]: rows [0, R) are the local experts' rows, ordered by (expert, source rank,
// token position of the source), and rows [R, R + n_sent) are this rank's choices that other ranks compute,
// in the order in which they were sent: (chunk, expert, token position). So every choice of this rank's
// tokens that was not dropped has one row in it, the rank's own choices cross no exchange, and combine reads
// all of them from one buffer.
//
// Rows travel in chunks: a chunk is the rows of some neighbouring local experts of every rank. With several
// of them the rows of one chunk are under way while the experts compute another; what is computed does not
// depend on their number, because no product of an expert is divided.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moe/moe_options.hpp"
#include "moe/routing.hpp"
#include "nn/stored_activation.hpp"
#include "parallel/communicator.hpp"

namespace athanor::moe {

namespace detail {
class RowFlow;
}

/// One part of an exchange: the rows of the local experts [first_expert, first_expert + num_experts) of every
/// rank. Its rows lie together among those that are sent and among those that are received.
struct DispatchChunk {
  std::int64_t first_expert = 0;
  std::int64_t num_experts = 0;
  std::int64_t first_sent = 0;             ///< of the plan's sent rows
  std::int64_t first_received = 0;         ///< of the plan's received rows
  std::vector<std::int64_t> send_rows;     ///< [ep] rows to each rank, 0 to itself
  std::vector<std::int64_t> receive_rows;  ///< [ep] rows from each rank, 0 from itself

  std::int64_t num_sent() const;
  std::int64_t num_received() const;
};

/// Where the rows of one micro-batch go. Made once a forward pass, used by dispatch, experts and combine,
/// both ways.
struct DispatchPlan {
  std::int64_t tokens = 0;
  std::int64_t choices = 0;
  std::vector<std::int64_t> expert_rows;   ///< [e] rows of each local expert; they sum to R
  std::vector<DispatchChunk> chunks;       ///< at least one
  std::vector<std::int64_t> own_token;     ///< tokens of the choices this rank computes itself ...
  std::vector<std::int64_t> own_row;       ///< ... and their rows
  std::vector<std::int64_t> sent_token;    ///< [n_sent] token of each sent row
  std::vector<std::int64_t> received_row;  ///< [n_received] row of the buffer of each received row
  std::vector<std::int64_t> slot;          ///< [T * K] row of the buffer of each choice; -1: dropped

  std::int64_t num_expert_rows() const;
  std::int64_t num_sent() const { return static_cast<std::int64_t>(sent_token.size()); }
  std::int64_t num_received() const { return static_cast<std::int64_t>(received_row.size()); }
  std::int64_t buffer_rows() const { return num_expert_rows() + num_sent(); }

  /// What is under way: tokens there and results back, and in the backward pass their gradients.
  std::shared_ptr<detail::RowFlow> forward_flow, backward_flow;
};

/// All-to-all dispatch over the expert-parallel group. Every rank takes part in every exchange, with or
/// without rows.
///
/// A wire other than `full` rounds the rows that change ranks, each number once an exchange; a rank's own
/// choices are not rounded. The rounding's backward is the identity (straight-through): gradients pass as if
/// nothing had been rounded, and are themselves rounded where they change ranks. A NaN or an infinity makes
/// its block of 128 NaN at the receiver.
class TokenDispatcher {
 public:
  /// `ep` must outlive this and the backward passes. `num_experts` is a multiple of its size. Results travel
  /// in full or bf16, tokens in any format; f64 rows in full only. `keep`: how combine() keeps the experts'
  /// results for backward. `chunks`: at most the experts of a rank.
  TokenDispatcher(std::int64_t num_experts, const parallel::Communicator& ep, const RowWire& wire = {},
                  const nn::Keep& keep = {}, std::int64_t chunks = 1);

  /// Sorts the choices and exchanges the counts. Collective over ep.
  std::shared_ptr<const DispatchPlan> plan(const Routing& routing) const;

  /// x [T, D] -> row buffer whose first R rows are filled; with several chunks, those of an expert once
  /// forward_flow has its chunk. Differentiable; collective over ep both ways.
  at::Tensor dispatch(const at::Tensor& x_TD, const std::shared_ptr<const DispatchPlan>& plan) const;

  /// Row buffer with the experts' results in its first R rows, and gates [T, K] in the accumulation type -> y
  /// [T, D]: the gated sum over the choices in the order of k, in the accumulation type. Takes the buffer
  /// over: its tail is filled with the other ranks' results. Differentiable; collective over ep both ways.
  at::Tensor combine(const at::Tensor& rows, const at::Tensor& gates_TK,
                     const std::shared_ptr<const DispatchPlan>& plan) const;

 private:
  std::int64_t num_experts_;
  const parallel::Communicator* ep_;
  RowWire wire_;
  nn::Keep keep_;
  std::int64_t chunks_;
};

}  // namespace athanor::moe
