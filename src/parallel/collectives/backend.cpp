#include "parallel/collectives/backend.hpp"

#include "base/error.hpp"

namespace athanor::parallel {

void CollectiveBackend::all_reduce_floats(at::Tensor& /*tensor*/) {
  throw base::InternalError(
      "this backend does not add floats (they are added in rank order) ask sums_floats()");
}

void CollectiveBackend::reduce_scatter_floats(at::Tensor& /*output*/, const at::Tensor& /*input*/) {
  throw base::InternalError(
      "this backend does not add floats (they are added in rank order) ask sums_floats()");
}

}  // namespace athanor::parallel
