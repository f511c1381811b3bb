#include "moe/token_dispatcher.hpp"

#include <numeric>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "moe/detail/attach_backward.hpp"
#include "moe/detail/row_flow.hpp"
#include "moe/detail/row_wire.hpp"
#include "moe/detail/rows.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::moe {
namespace {

using Indices = std::vector<std::int64_t>;

/// The choices of this rank's tokens, as the router left them.
struct Choices {
  const std::int64_t* ids;
  const bool* kept;  ///< nullptr: all
  std::int64_t count;
  bool is_kept(std::int64_t choice) const { return kept == nullptr || kept[choice]; }
};

/// How the experts lie on the ranks.
struct ExpertLayout {
  std::int64_t ranks;
  std::int64_t own;  ///< this rank
  std::int64_t local_experts;
};

at::Tensor count_by_expert(const Choices& choices, std::int64_t num_experts) {
  at::Tensor counts_E = at::zeros({num_experts}, at::kLong);
  auto* counts = counts_E.mutable_data_ptr<std::int64_t>();
  for (std::int64_t choice = 0; choice < choices.count; ++choice) {
    counts[choices.ids[choice]] += choices.is_kept(choice) ? 1 : 0;
  }
  return counts_E;
}

/// First row of each (source rank, local expert) part in the order (expert, source rank).
Indices first_rows(const std::int64_t* received_counts, std::int64_t sources, std::int64_t local_experts,
                   Indices& expert_rows) {
  Indices first(static_cast<std::size_t>(sources * local_experts));
  std::int64_t row = 0;
  for (std::int64_t expert = 0; expert < local_experts; ++expert) {
    const std::int64_t begin = row;
    for (std::int64_t source = 0; source < sources; ++source) {
      const std::int64_t part = source * local_experts + expert;
      first[static_cast<std::size_t>(part)] = row;
      row += received_counts[part];
    }
    expert_rows.push_back(row - begin);
  }
  return first;
}

/// Divides the local experts into chunks and counts what each of them moves.
void make_chunks(DispatchPlan& plan, const std::int64_t* counts_E, const std::int64_t* received_counts,
                 const ExpertLayout& layout, std::int64_t chunks) {
  std::int64_t sent = 0;
  std::int64_t received = 0;
  for (std::int64_t c = 0; c < chunks; ++c) {
    const parallel::Block experts = parallel::block_of(layout.local_experts, chunks, c);
    DispatchChunk chunk{experts.first, experts.count, sent, received, {}, {}};
    for (std::int64_t rank = 0; rank < layout.ranks; ++rank) {
      const auto rows_of = [&](const std::int64_t* counts) {
        const std::int64_t* first = counts + rank * layout.local_experts + experts.first;
        return rank == layout.own ? 0 : std::accumulate(first, first + experts.count, std::int64_t{0});
      };
      chunk.send_rows.push_back(rows_of(counts_E));
      chunk.receive_rows.push_back(rows_of(received_counts));
    }
    sent += chunk.num_sent();
    received += chunk.num_received();
    plan.chunks.push_back(std::move(chunk));
  }
}

/// Calls visit(part) for each part of another rank, part = rank * local experts + local expert, in the order
/// in which rows travel: (chunk, rank, expert).
template <typename Visit>
void for_remote_parts(const DispatchPlan& plan, const ExpertLayout& layout, const Visit& visit) {
  for (const DispatchChunk& chunk : plan.chunks) {
    for (std::int64_t rank = 0; rank < layout.ranks; ++rank) {
      for (std::int64_t i = 0; rank != layout.own && i < chunk.num_experts; ++i) {
        visit(rank * layout.local_experts + chunk.first_expert + i);
      }
    }
  }
}

/// Rows of the received parts, each of which comes in the order of position.
void place_received(DispatchPlan& plan, const std::int64_t* received_counts, const Indices& first,
                    const ExpertLayout& layout) {
  for_remote_parts(plan, layout, [&](std::int64_t part) {
    for (std::int64_t i = 0; i < received_counts[part]; ++i) {
      plan.received_row.push_back(first[static_cast<std::size_t>(part)] + i);
    }
  });
}

/// Gives every kept choice its row: a counting sort by expert, stable in the position of the token.
void place_choices(DispatchPlan& plan, const Choices& choices, const std::int64_t* counts_E,
                   const Indices& first, const ExpertLayout& layout) {
  const std::int64_t own = layout.own;
  const std::int64_t local_experts = layout.local_experts;
  Indices next = first;  // of own experts; those of others:
  std::int64_t sent = 0;
  for_remote_parts(plan, layout, [&](std::int64_t expert) {
    next[static_cast<std::size_t>(expert)] = sent;
    sent += counts_E[expert];
  });
  const std::int64_t expert_rows = plan.num_expert_rows();
  const auto own_rows =
      std::accumulate(counts_E + own * local_experts, counts_E + (own + 1) * local_experts, std::int64_t{0});
  plan.sent_token.resize(static_cast<std::size_t>(sent));
  plan.own_token.reserve(static_cast<std::size_t>(own_rows));
  plan.own_row.reserve(static_cast<std::size_t>(own_rows));
  plan.slot.assign(static_cast<std::size_t>(choices.count), -1);
  for (std::int64_t choice = 0; choice < choices.count; ++choice) {
    if (!choices.is_kept(choice)) {
      continue;
    }
    const std::int64_t expert = choices.ids[choice];
    const std::int64_t row = next[static_cast<std::size_t>(expert)]++;
    const std::int64_t token = choice / plan.choices;
    if (expert / local_experts == own) {
      plan.own_token.push_back(token);
      plan.own_row.push_back(row);
      plan.slot[static_cast<std::size_t>(choice)] = row;
    } else {
      plan.sent_token[static_cast<std::size_t>(row)] = token;
      plan.slot[static_cast<std::size_t>(choice)] = expert_rows + row;
    }
  }
}

/// The tail of a row buffer.
at::Tensor sent_part(const at::Tensor& rows, const DispatchPlan& plan) {
  return rows.narrow(0, plan.num_expert_rows(), plan.num_sent());
}

/// A group of one exchanges nothing, so it rounds nothing.
bool is_exchanged_as_is(base::WireType wire, const at::Tensor& rows, const parallel::Communicator& ep) {
  return ep.size() == 1 || detail::travels_as_is(wire, rows.scalar_type());
}

/// The rows of x that are sent, as they travel. A token is rounded once, whatever number of ranks it goes to.
at::Tensor outgoing_tokens(const at::Tensor& x_TD, const at::Tensor& rows, const DispatchPlan& plan,
                           const parallel::Communicator& ep, const RowWire& wire) {
  if (is_exchanged_as_is(wire.dispatch, rows, ep)) {
    const at::Tensor outgoing = sent_part(rows, plan);  // the tail is free until combine
    detail::copy_rows(outgoing, {}, x_TD, plan.sent_token);
    return outgoing;
  }
  const at::Tensor packed = detail::pack_rows(x_TD, wire.dispatch, wire.fp8_format, ep.traffic());
  const at::Tensor outgoing = at::empty({plan.num_sent(), packed.size(1)}, packed.options());
  detail::copy_rows(outgoing, {}, packed, plan.sent_token);
  return outgoing;
}

}  // namespace

std::int64_t DispatchChunk::num_sent() const {
  return std::accumulate(send_rows.begin(), send_rows.end(), std::int64_t{0});
}
std::int64_t DispatchChunk::num_received() const {
  return std::accumulate(receive_rows.begin(), receive_rows.end(), std::int64_t{0});
}

std::int64_t DispatchPlan::num_expert_rows() const {
  return std::accumulate(expert_rows.begin(), expert_rows.end(), std::int64_t{0});
}

TokenDispatcher::TokenDispatcher(std::int64_t num_experts, const parallel::Communicator& ep,
                                 const RowWire& wire, const nn::Keep& keep, std::int64_t chunks)
    : num_experts_(num_experts), ep_(&ep), wire_(wire), keep_(keep), chunks_(chunks) {
  ATHANOR_CHECK(wire.combine != base::WireType::fp8, "results travel in full or bf16");
  ATHANOR_CHECK(num_experts % ep.size() == 0, "{} experts over {} ranks", num_experts, ep.size());
  ATHANOR_CHECK(chunks >= 1 && chunks <= num_experts / ep.size(), "{} experts in {} chunks",
                num_experts / ep.size(), chunks);
}

std::shared_ptr<const DispatchPlan> TokenDispatcher::plan(const Routing& routing) const {
  const std::int64_t sources = ep_->size();
  const std::int64_t local_experts = num_experts_ / sources;
  auto plan = std::make_shared<DispatchPlan>();
  plan->tokens = routing.topk_ids_TK.size(0);
  plan->choices = routing.topk_ids_TK.size(1);
  const at::Tensor kept = routing.kept_TK.defined() ? routing.kept_TK.contiguous() : at::Tensor();
  const Choices choices{routing.topk_ids_TK.const_data_ptr<std::int64_t>(),
                        kept.defined() ? kept.const_data_ptr<bool>() : nullptr, plan->tokens * plan->choices};

  const at::Tensor counts = count_by_expert(choices, num_experts_);
  const at::Tensor received =
      parallel::exchange_counts(counts.view({sources, local_experts}), *ep_, parallel::Traffic::dispatch);
  const auto* counts_E = counts.const_data_ptr<std::int64_t>();
  const auto* received_counts = received.const_data_ptr<std::int64_t>();
  const ExpertLayout layout{sources, ep_->rank(), local_experts};
  const Indices first_by_part = first_rows(received_counts, sources, local_experts, plan->expert_rows);
  make_chunks(*plan, counts_E, received_counts, layout, chunks_);
  place_received(*plan, received_counts, first_by_part, layout);
  place_choices(*plan, choices, counts_E, first_by_part, layout);
  plan->forward_flow = std::make_shared<detail::RowFlow>(*ep_, wire_);
  plan->backward_flow = std::make_shared<detail::RowFlow>(*ep_, wire_);
  return plan;
}

at::Tensor TokenDispatcher::dispatch(const at::Tensor& x_TD,
                                     const std::shared_ptr<const DispatchPlan>& plan) const {
  const parallel::Communicator* ep = ep_;
  at::Tensor rows;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor x = x_TD.contiguous();
    const base::ScopedSpan span(base::SpanKind::compute, "dispatch");
    rows = at::empty({plan->buffer_rows(), x.size(1)}, x.options());
    plan->forward_flow->deliver(rows, outgoing_tokens(x, rows, *plan, *ep, wire_), *plan);
    detail::copy_rows(rows, plan->own_row, x, plan->own_token);  // while those of others travel
  }
  return detail::attach_backward(
      "dispatch backward", {x_TD}, {rows}, [plan](const detail::TensorVector& gradients) {
        const at::NoGradGuard no_grad;
        const at::Tensor& drows = gradients[0];
        ATHANOR_CHECK(drows.defined() && drows.is_contiguous(), "the experts gave no gradient of their rows");
        plan->backward_flow->take_back(drows, *plan);
        at::Tensor dx_TD = at::empty({plan->tokens, drows.size(1)}, drows.options());
        detail::combine_rows(drows, plan->slot, at::Tensor(), plan->choices, dx_TD);
        return detail::TensorVector{dx_TD};
      })[0];
}

at::Tensor TokenDispatcher::combine(const at::Tensor& rows, const at::Tensor& gates_TK,
                                    const std::shared_ptr<const DispatchPlan>& plan) const {
  const parallel::Communicator* ep = ep_;
  const at::Tensor buffer = rows.detach();
  const at::Tensor gates = gates_TK.detach().contiguous();
  const nn::Keep keep = nn::keep_if_backward(keep_);
  nn::StoredActivation kept;  // of the results: backward needs them for the gates' gradients
  at::Tensor y_TD;
  {
    const at::NoGradGuard no_grad;
    const base::ScopedSpan span(base::SpanKind::compute, "combine");
    plan->forward_flow->take_back(buffer, *plan);
    y_TD = at::empty({plan->tokens, rows.size(1)}, rows.options());
    detail::combine_rows(buffer, plan->slot, gates, plan->choices, y_TD);
    kept = nn::store_activation(buffer, keep);
  }
  return detail::attach_backward(
      "combine backward", {rows, gates_TK}, {y_TD},
      [kept, gates, plan, ep, wire = wire_,
       wants_rows = rows.requires_grad()](const detail::TensorVector& gradients) {
        const at::NoGradGuard no_grad;
        const at::Tensor dy_TD = gradients[0].contiguous();
        at::Tensor drows = at::empty(kept.data.sizes(), dy_TD.options());
        at::Tensor dgates_TK = at::empty(gates.sizes(), gates.options());
        detail::combine_rows_backward(dy_TD, nn::restore_activation(kept, dy_TD.scalar_type()), plan->slot,
                                      gates, plan->choices, drows, dgates_TK);
        if (!wants_rows) {  // the same on all ranks
          return detail::TensorVector{at::Tensor(), dgates_TK};
        }
        const at::Tensor tail = sent_part(drows, *plan);
        const at::Tensor outgoing =
            is_exchanged_as_is(wire.dispatch, drows, *ep)
                ? tail
                : detail::pack_rows(tail, wire.dispatch, wire.fp8_format, ep->traffic());
        plan->backward_flow->deliver(drows, outgoing, *plan);
        return detail::TensorVector{drows, dgates_TK};
      })[0];
}

}  // namespace athanor::moe
