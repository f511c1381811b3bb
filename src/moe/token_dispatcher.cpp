#include "moe/token_dispatcher.hpp"

#include <numeric>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.hpp"
#include "moe/detail/attach_backward.hpp"
#include "moe/detail/row_wire.hpp"
#include "moe/detail/rows.hpp"
#include "parallel/collectives/collectives.hpp"

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

/// Rows of the received parts, which come in the order (source rank, expert, position).
void place_received(DispatchPlan& plan, const std::int64_t* received_counts, const Indices& first,
                    std::int64_t own, std::int64_t sources, std::int64_t local_experts) {
  for (std::int64_t source = 0; source < sources; ++source) {
    std::int64_t rows = 0;
    for (std::int64_t part = source * local_experts; source != own && part < (source + 1) * local_experts;
         ++part) {
      for (std::int64_t i = 0; i < received_counts[part]; ++i) {
        plan.received_row.push_back(first[static_cast<std::size_t>(part)] + i);
      }
      rows += received_counts[part];
    }
    plan.receive_rows.push_back(rows);
  }
}

/// Gives every kept choice its row: a counting sort by expert, stable in the position of the token.
void place_choices(DispatchPlan& plan, const Choices& choices, const std::int64_t* counts_E,
                   const Indices& first, std::int64_t own, std::int64_t local_experts) {
  const std::int64_t sources = static_cast<std::int64_t>(plan.receive_rows.size());
  const std::int64_t num_experts = sources * local_experts;
  Indices next(static_cast<std::size_t>(num_experts));
  std::int64_t sent = 0;
  for (std::int64_t expert = 0; expert < num_experts; ++expert) {
    const bool is_own = expert / local_experts == own;
    next[static_cast<std::size_t>(expert)] = is_own ? first[static_cast<std::size_t>(expert)] : sent;
    sent += is_own ? 0 : counts_E[expert];
  }
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

/// Rows that this rank computed for others go back to them, into the tail of their buffers.
void return_rows(const at::Tensor& rows, const DispatchPlan& plan, const parallel::Communicator& ep,
                 const RowWire& wire, parallel::Traffic purpose) {
  const at::Tensor returned = at::empty({plan.num_received(), rows.size(1)}, rows.options());
  detail::copy_rows(returned, {}, rows, plan.received_row);
  const at::Tensor tail = sent_part(rows, plan);
  if (is_exchanged_as_is(wire.combine, rows, ep)) {
    detail::exchange_rows(tail, plan.send_rows, returned, plan.receive_rows, ep, purpose);
    return;
  }
  const at::Tensor packed = detail::pack_rows(returned, wire.combine, wire.fp8_format, ep.traffic());
  const at::Tensor arrived = at::empty({plan.num_sent(), packed.size(1)}, packed.options());
  detail::exchange_rows(arrived, plan.send_rows, packed, plan.receive_rows, ep, purpose);
  detail::unpack_rows(arrived, wire.fp8_format, tail, {});
}

/// Rows for other ranks' experts, `outgoing` as they travel, go to them; the rows from others go to their
/// places in `rows`.
void deliver_rows(const at::Tensor& rows, const at::Tensor& outgoing, const DispatchPlan& plan,
                  const parallel::Communicator& ep, const RowWire& wire, parallel::Traffic purpose) {
  const at::Tensor received = at::empty({plan.num_received(), outgoing.size(1)}, outgoing.options());
  detail::exchange_rows(received, plan.receive_rows, outgoing, plan.send_rows, ep, purpose);
  if (outgoing.scalar_type() == rows.scalar_type()) {
    detail::copy_rows(rows, plan.received_row, received, {});
  } else {
    detail::unpack_rows(received, wire.fp8_format, rows, plan.received_row);
  }
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

std::int64_t DispatchPlan::num_expert_rows() const {
  return std::accumulate(expert_rows.begin(), expert_rows.end(), std::int64_t{0});
}

TokenDispatcher::TokenDispatcher(std::int64_t num_experts, const parallel::Communicator& ep,
                                 const RowWire& wire)
    : num_experts_(num_experts), ep_(&ep), wire_(wire) {
  ATHANOR_CHECK(wire.combine != base::WireType::fp8, "results travel in full or bf16");
  ATHANOR_CHECK(num_experts % ep.size() == 0, "{} experts over {} ranks", num_experts, ep.size());
}

std::shared_ptr<const DispatchPlan> TokenDispatcher::plan(const Routing& routing) const {
  const std::int64_t sources = ep_->size();
  const std::int64_t own = ep_->rank();
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
  const Indices first_by_part = first_rows(received_counts, sources, local_experts, plan->expert_rows);
  place_received(*plan, received_counts, first_by_part, own, sources, local_experts);
  for (std::int64_t rank = 0; rank < sources; ++rank) {
    plan->send_rows.push_back(rank == own
                                  ? 0
                                  : std::accumulate(counts_E + rank * local_experts,
                                                    counts_E + (rank + 1) * local_experts, std::int64_t{0}));
  }
  place_choices(*plan, choices, counts_E, first_by_part, own, local_experts);
  return plan;
}

at::Tensor TokenDispatcher::dispatch(const at::Tensor& x_TD,
                                     const std::shared_ptr<const DispatchPlan>& plan) const {
  const parallel::Communicator* ep = ep_;
  at::Tensor rows;
  {
    const at::NoGradGuard no_grad;
    const at::Tensor x = x_TD.contiguous();
    rows = at::empty({plan->buffer_rows(), x.size(1)}, x.options());
    detail::copy_rows(rows, plan->own_row, x, plan->own_token);
    deliver_rows(rows, outgoing_tokens(x, rows, *plan, *ep, wire_), *plan, *ep, wire_,
                 parallel::Traffic::dispatch);
  }
  return detail::attach_backward(
      {x_TD}, {rows}, [plan, ep, wire = wire_](const detail::TensorVector& gradients) {
        const at::NoGradGuard no_grad;
        const at::Tensor& drows = gradients[0];
        ATHANOR_CHECK(drows.defined() && drows.is_contiguous(), "the experts gave no gradient of their rows");
        return_rows(drows, *plan, *ep, wire, parallel::Traffic::combine);
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
  at::Tensor y_TD;
  {
    const at::NoGradGuard no_grad;
    return_rows(buffer, *plan, *ep, wire_, parallel::Traffic::combine);
    y_TD = at::empty({plan->tokens, rows.size(1)}, rows.options());
    detail::combine_rows(buffer, plan->slot, gates, plan->choices, y_TD);
  }
  return detail::attach_backward(
      {rows, gates_TK}, {y_TD}, [=, wire = wire_](const detail::TensorVector& gradients) {
        const at::NoGradGuard no_grad;
        const at::Tensor dy_TD = gradients[0].contiguous();
        at::Tensor drows = at::empty(buffer.sizes(), buffer.options());
        at::Tensor dgates_TK = at::empty(gates.sizes(), gates.options());
        detail::combine_rows_backward(dy_TD, buffer, plan->slot, gates, plan->choices, drows, dgates_TK);
        const at::Tensor tail = sent_part(drows, *plan);
        const at::Tensor outgoing =
            is_exchanged_as_is(wire.dispatch, drows, *ep)
                ? tail
                : detail::pack_rows(tail, wire.dispatch, wire.fp8_format, ep->traffic());
        deliver_rows(drows, outgoing, *plan, *ep, wire, parallel::Traffic::dispatch);
        return detail::TensorVector{drows, dgates_TK};
      })[0];
}

}  // namespace athanor::moe
