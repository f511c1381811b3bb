// Differentiable collectives. Each forward has one adjoint, in this table:
//
//   forward                          backward
//   all_gather_dim(x, dim)           reduce_scatter_dim(g, dim)
//   reduce_scatter_dim(x, dim)       all_gather_dim(g, dim)
//   copy_to_group(x)   identity      all-reduce (sum)
//   reduce_from_group(x) all-reduce  identity
//   all_to_all_v(x, send, receive)   all_to_all_v(g, receive, send)
//
// All are collective over the group in forward and in backward. On a group of one they return their input.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel::autograd {

/// Concatenates the ranks' tensors (equal shapes) along `dim`. `comm` must outlive the backward pass (here
/// and below).
at::Tensor all_gather_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm, Traffic purpose);
/// Sums over ranks and keeps this rank's equal part of `dim` (its length must be a multiple of the group's
/// size).
at::Tensor reduce_scatter_dim(const at::Tensor& x, std::int64_t dim, const Communicator& comm,
                              Traffic purpose);
at::Tensor copy_to_group(const at::Tensor& x, const Communicator& comm, Traffic purpose);
at::Tensor reduce_from_group(const at::Tensor& x, const Communicator& comm, Traffic purpose);
/// Differentiable exchange of rows; forward bytes count as `forward_purpose`, backward ones as
/// `backward_purpose`.
at::Tensor all_to_all_v(const at::Tensor& x, std::vector<std::int64_t> send_rows,
                        std::vector<std::int64_t> receive_rows, const Communicator& comm,
                        Traffic forward_purpose, Traffic backward_purpose);

}  // namespace athanor::parallel::autograd
