#include "parallel/collectives/algorithms/mpi_sums.hpp"

#include <ATen/ATen.h>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

int count_of(const at::Tensor& tensor) {
  ATHANOR_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
                "MPI's sum is measured on contiguous f32 tensors");
  return base::checked_cast<int>(tensor.numel(), "the elements of MPI's sum");
}

}  // namespace

void mpi_all_reduce_sum(at::Tensor& tensor, const Communicator& comm) {
  const int count = count_of(tensor);
  if (!comm.is_null()) {
    ATHANOR_MPI_CALL(*comm.state(), MPI_Allreduce(MPI_IN_PLACE, tensor.mutable_data_ptr<float>(), count,
                                                  MPI_FLOAT, MPI_SUM, comm.state()->comm));
  }
}

void mpi_reduce_scatter_sum(at::Tensor& output, const at::Tensor& input, const Communicator& comm) {
  const int count = count_of(output);
  ATHANOR_CHECK(count_of(input) == count * comm.size(), "{} elements do not scatter into {}", input.numel(),
                count);
  if (comm.is_null()) {
    output.copy_(input);
    return;
  }
  ATHANOR_MPI_CALL(*comm.state(),
                   MPI_Reduce_scatter_block(input.const_data_ptr<float>(), output.mutable_data_ptr<float>(),
                                            count, MPI_FLOAT, MPI_SUM, comm.state()->comm));
}

}  // namespace athanor::parallel
