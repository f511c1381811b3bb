#include <ATen/ATen.h>

#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/detail/collective_scope.hpp"
#include "parallel/collectives/detail/shapes.hpp"

namespace athanor::parallel {

void broadcast_(at::Tensor& tensor, int root, const Communicator& comm, Traffic purpose, CallSite site) {
  if (comm.size() == 1) {
    return;
  }
  at::Tensor contiguous = tensor.contiguous().detach();
  const std::int64_t sent_bytes =
      comm.rank() == root ? detail::total_bytes(contiguous) * (comm.size() - 1) : 0;
  const detail::CollectiveScope scope(comm, {.operation = "broadcast",
                                             .purpose = purpose,
                                             .bytes = sent_bytes,
                                             .site = site,
                                             .dtype = c10::toString(tensor.scalar_type()),
                                             .elements = tensor.numel(),
                                             .root = root});
  comm.backend().broadcast(contiguous, root);
  if (!tensor.is_contiguous()) {
    tensor.copy_(contiguous);
  }
}

}  // namespace athanor::parallel
