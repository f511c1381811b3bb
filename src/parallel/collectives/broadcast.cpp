#include <ATen/ATen.h>

#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {

void broadcast_(at::Tensor& tensor, int root, const Communicator& comm, Traffic purpose) {
  if (comm.size() == 1) {
    return;
  }
  at::Tensor contiguous = tensor.contiguous().detach();
  if (comm.rank() == root) {
    comm.traffic().add(purpose, detail::total_bytes(contiguous) * (comm.size() - 1));
  }
  comm.backend().broadcast(contiguous, root);
  if (!tensor.is_contiguous()) {
    tensor.copy_(contiguous);
  }
}

}  // namespace athanor::parallel
