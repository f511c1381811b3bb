// The collective operations on tensors. All are collective over the group they are given and block the host
// until the result may be read (on a GPU: the stream). Null communicators and groups of one copy their input.
//
// Contract 6: sums of floating-point numbers are made in rank order in the accumulation type (f32 for f32,
// bf16 and fp16; f64 for f64), by exchange - sum - gather of our own, so their bits depend on the group's
// size alone, not on bucket sizes or on what MPI chooses. Integers go through MPI. On GPUs too,
// unless these sums are left to NCCL (NcclOptions::float_sums).
//
// `site` is the caller's, for messages and for those who watch; it is never passed by hand.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/call_site.hpp"
#include "parallel/collectives/backend.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel {

using base::CallSite;

/// Sends rows of `input` [sum(send_rows), ...] to ranks in order and returns [sum(receive_rows), ...],
/// ordered by source rank. Empty parts are ordinary. Throws InternalError when counts and shapes disagree.
at::Tensor all_to_all_v(const at::Tensor& input, std::span<const std::int64_t> send_rows,
                        std::span<const std::int64_t> receive_rows, const Communicator& comm, Traffic purpose,
                        CallSite site = CallSite::current());
/// As all_to_all_v into `output` (contiguous, sum(receive_rows) rows of the input's type and row shape).
void all_to_all_v_into(const at::Tensor& output, const at::Tensor& input,
                       std::span<const std::int64_t> send_rows, std::span<const std::int64_t> receive_rows,
                       const Communicator& comm, Traffic purpose, CallSite site = CallSite::current());

/// Each rank passes size() numbers, one for each rank, and gets the size() numbers meant for it.
/// `counts` is an int64 tensor [size, ...]; row r goes to rank r.
at::Tensor exchange_counts(const at::Tensor& counts, const Communicator& comm, Traffic purpose,
                           CallSite site = CallSite::current());

/// The ranks' tensors (equal shapes) one after another along dim 0: [size * n, ...].
at::Tensor all_gather(const at::Tensor& input, const Communicator& comm, Traffic purpose,
                      CallSite site = CallSite::current());
/// As all_gather with rows[r] rows from rank r.
at::Tensor all_gather_v(const at::Tensor& input, std::span<const std::int64_t> rows, const Communicator& comm,
                        Traffic purpose, CallSite site = CallSite::current());
/// As all_gather into `output`; `input` may be this rank's part of `output`.
void all_gather_into(at::Tensor& output, const at::Tensor& input, const Communicator& comm, Traffic purpose,
                     CallSite site = CallSite::current());

/// Sum over ranks, in rank order, of `input` [size * n, ...] (floats); rank r gets rows [r*n, (r+1)*n).
at::Tensor reduce_scatter_sum(const at::Tensor& input, const Communicator& comm, Traffic purpose,
                              CallSite site = CallSite::current());
/// As reduce_scatter_sum into `output` [n, ...] of the accumulation type or the input's; `output` may be this
/// rank's rows of `input`.
void reduce_scatter_sum_into(at::Tensor& output, const at::Tensor& input, const Communicator& comm,
                             Traffic purpose, CallSite site = CallSite::current());

/// Elementwise reduction in place. Floats: sum in rank order, max and min exact (NaN wins). Integers: through
/// MPI.
void all_reduce_(at::Tensor& tensor, ReduceOp op, const Communicator& comm, Traffic purpose,
                 CallSite site = CallSite::current());
/// Sum of one number over the group in rank order.
double all_reduce_sum(double value, const Communicator& comm, CallSite site = CallSite::current());
std::int64_t all_reduce_sum(std::int64_t value, const Communicator& comm,
                            CallSite site = CallSite::current());
std::int64_t all_reduce_max(std::int64_t value, const Communicator& comm,
                            CallSite site = CallSite::current());

void broadcast_(at::Tensor& tensor, int root, const Communicator& comm, Traffic purpose,
                CallSite site = CallSite::current());

/// True on all ranks if and only if `ok` is true on every rank.
bool agree(bool ok, const Communicator& comm, CallSite site = CallSite::current());
/// Every rank's string, in rank order, on every rank.
std::vector<std::string> all_gather_strings(const std::string& text, const Communicator& comm,
                                            CallSite site = CallSite::current());
/// rank `root`'s string on every rank.
std::string broadcast_string(const std::string& text, int root, const Communicator& comm,
                             CallSite site = CallSite::current());

}  // namespace athanor::parallel
