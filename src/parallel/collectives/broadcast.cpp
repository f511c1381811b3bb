#include <ATen/ATen.h>

#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {

void broadcast_(at::Tensor& tensor, int root, const Communicator& comm, Traffic purpose) {
  if (comm.size() == 1) {
    return;
  }
  at::Tensor contiguous = tensor.contiguous().detach();
  const std::int64_t sent_bytes =
      comm.rank() == root ? detail::total_bytes(contiguous) * (comm.size() - 1) : 0;
  const TrafficScope scope(comm.traffic(), purpose, sent_bytes);
  comm.backend().broadcast(contiguous, root);
  if (!tensor.is_contiguous()) {
    tensor.copy_(contiguous);
  }
}

}  // namespace athanor::parallel
