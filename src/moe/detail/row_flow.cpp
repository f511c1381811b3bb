#include "moe/detail/row_flow.hpp"

#include <span>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "moe/detail/row_wire.hpp"
#include "moe/detail/rows.hpp"

namespace athanor::moe::detail {
namespace {

std::vector<at::Tensor> parts_by_rank(const at::Tensor& rows, const std::vector<std::int64_t>& counts) {
  std::vector<at::Tensor> parts;
  std::int64_t first = 0;
  for (const std::int64_t count : counts) {
    parts.push_back(rows.narrow(0, first, count));
    first += count;
  }
  return parts;
}

at::Tensor tail_of(const at::Tensor& rows, const DispatchPlan& plan, const DispatchChunk& chunk) {
  return rows.narrow(0, plan.num_expert_rows() + chunk.first_sent, chunk.num_sent());
}

std::span<const std::int64_t> received_rows_of(const DispatchPlan& plan, const DispatchChunk& chunk) {
  return std::span(plan.received_row)
      .subspan(static_cast<std::size_t>(chunk.first_received),
               static_cast<std::size_t>(chunk.num_received()));
}

/// Rows that arrived as they travelled go to their places.
void place(const at::Tensor& received, base::Fp8Format format, const at::Tensor& rows,
           std::span<const std::int64_t> places) {
  if (places.empty()) {
    return;  // an empty span would stand for 0, 1, 2, ...
  }
  if (received.scalar_type() == rows.scalar_type()) {
    copy_rows(rows, places, received, {});
  } else {
    unpack_rows(received, format, rows, places);
  }
}

}  // namespace

void RowFlow::deliver(const at::Tensor& rows, const at::Tensor& outgoing, const DispatchPlan& plan) {
  if (ep_->size() == 1) {
    return;
  }
  received_ = at::empty({plan.num_received(), outgoing.size(1)}, outgoing.options());
  if (!is_in_chunks(plan)) {
    const DispatchChunk& all = plan.chunks.front();
    exchange_rows(received_, all.receive_rows, outgoing, all.send_rows, *ep_, parallel::Traffic::dispatch);
    place(std::exchange(received_, {}), wire_.fp8_format, rows, plan.received_row);
    return;
  }
  rows_ = rows;
  for (const DispatchChunk& chunk : plan.chunks) {
    const at::Tensor to = received_.narrow(0, chunk.first_received, chunk.num_received());
    const at::Tensor from = outgoing.narrow(0, chunk.first_sent, chunk.num_sent());
    out_.push_back(
        {parallel::start_exchange(parts_by_rank(to, chunk.receive_rows), parts_by_rank(from, chunk.send_rows),
                                  *ep_, parallel::Traffic::dispatch),
         to});
  }
}

void RowFlow::await(const at::Tensor& rows, const DispatchPlan& plan, std::size_t c) {
  if (!out_.empty()) {
    ATHANOR_CHECK(rows.is_alias_of(rows_), "rows are awaited in another buffer");
    receive(plan, c);
  }
}

void RowFlow::receive(const DispatchPlan& plan, std::size_t c) {
  if (c >= out_.size() || out_[c].is_over) {
    return;
  }
  Transfer& transfer = out_[c];
  transfer.pending.wait();
  place(std::exchange(transfer.received, {}), wire_.fp8_format, rows_,
        received_rows_of(plan, plan.chunks[c]));
  transfer.is_over = true;
}

void RowFlow::give_back(const at::Tensor& results, const DispatchPlan& plan, std::size_t c) {
  if (ep_->size() > 1 && is_in_chunks(plan)) {
    ATHANOR_CHECK(c == back_.size(), "chunk {} is given back after {} others", c, back_.size());
    results_ = results;
    start_return(results, plan, c);
  }
}

void RowFlow::start_return(const at::Tensor& results, const DispatchPlan& plan, std::size_t c) {
  const DispatchChunk& chunk = plan.chunks[c];
  at::Tensor outgoing = at::empty({chunk.num_received(), results.size(1)}, results.options());
  if (chunk.num_received() > 0) {
    copy_rows(outgoing, {}, results, received_rows_of(plan, chunk));
  }
  at::Tensor incoming = tail_of(results, plan, chunk);
  if (!travels_as_is(wire_.combine, results.scalar_type())) {
    outgoing = pack_rows(outgoing, wire_.combine, wire_.fp8_format, ep_->traffic());
    incoming = at::empty({chunk.num_sent(), outgoing.size(1)}, outgoing.options());
  }
  if (is_in_chunks(plan)) {
    back_.push_back({parallel::start_exchange(parts_by_rank(incoming, chunk.send_rows),
                                              parts_by_rank(outgoing, chunk.receive_rows), *ep_,
                                              parallel::Traffic::combine),
                     incoming});
    return;
  }
  exchange_rows(incoming, chunk.send_rows, outgoing, chunk.receive_rows, *ep_, parallel::Traffic::combine);
  back_.push_back({{}, incoming});
}

void RowFlow::take_back(const at::Tensor& results, const DispatchPlan& plan) {
  if (ep_->size() == 1) {
    return;
  }
  ATHANOR_CHECK(back_.empty() || results.is_alias_of(results_), "results come back to another buffer");
  for (std::size_t c = back_.size(); c < plan.chunks.size(); ++c) {
    receive(plan, c);
    start_return(results, plan, c);
  }
  for (std::size_t c = 0; c < plan.chunks.size(); ++c) {
    back_[c].pending.wait();
    if (!travels_as_is(wire_.combine, results.scalar_type())) {
      unpack_rows(back_[c].received, wire_.fp8_format, tail_of(results, plan, plan.chunks[c]), {});
    }
  }
  out_.clear();
  back_.clear();
  rows_.reset();
  received_.reset();
  results_.reset();
}

void RowFlow::progress() {
  for (std::vector<Transfer>* transfers : {&out_, &back_}) {
    for (Transfer& transfer : *transfers) {
      transfer.pending.test();
    }
  }
}

}  // namespace athanor::moe::detail
