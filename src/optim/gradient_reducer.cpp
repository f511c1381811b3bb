#include "optim/gradient_reducer.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::optim {
namespace {

// Elements [first, first + count) in rows of one block: fewer and larger units for the transport than
// elements.
at::Tensor rows_of(const at::Tensor& flat, std::int64_t first, std::int64_t count) {
  return flat.narrow(0, first, count).view({count / block_elements, block_elements});
}

}  // namespace

GradientReducer::GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm,
                                 at::ScalarType accumulation, parallel::Traffic purpose)
    : layout_(&layout), comm_(&comm), purpose_(purpose) {
  ATHANOR_CHECK(layout.group_size() == comm.size(), "layout of {} ranks in a group of {}",
                layout.group_size(), comm.size());
  flat_ = at::zeros({layout.total()}, accumulation);
  shard_ = comm.size() == 1 ? flat_ : at::empty({layout.shard_total()}, accumulation);
}

void GradientReducer::reduce_scatter() {
  if (comm_->size() == 1) {
    return;
  }
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    at::Tensor sum = rows_of(shard_, bucket.shard_first, bucket.count / comm_->size());
    parallel::reduce_scatter_sum_into(sum, rows_of(flat_, bucket.first, bucket.count), *comm_, purpose_);
  }
}

void GradientReducer::all_gather() {
  if (comm_->size() == 1) {
    return;
  }
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    at::Tensor all = rows_of(flat_, bucket.first, bucket.count);
    const at::Tensor own = rows_of(shard_, bucket.shard_first, bucket.count / comm_->size());
    parallel::all_gather_into(all, own, *comm_, purpose_);
  }
}

}  // namespace athanor::optim
