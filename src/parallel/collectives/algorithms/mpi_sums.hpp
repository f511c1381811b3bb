// MPI's own sums of floats, to be measured beside ours. Training never uses them: their bits depend on the
// algorithm that MPI picks.
#pragma once

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"

namespace athanor::parallel {

/// Sum of a contiguous f32 tensor of less than 2^31 elements, in place. Collective.
void mpi_all_reduce_sum(at::Tensor& tensor, const Communicator& comm);
/// As reduce_scatter_sum_into, f32 of less than 2^31 elements. Collective.
void mpi_reduce_scatter_sum(at::Tensor& output, const at::Tensor& input, const Communicator& comm);

}  // namespace athanor::parallel
