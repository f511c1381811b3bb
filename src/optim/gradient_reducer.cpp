#include "optim/gradient_reducer.hpp"

#include <algorithm>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "optim/detail/stored_gradients.hpp"
#include "optim/detail/wire_parts.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::optim {
namespace {

// Elements [first, first + count) in rows of one block: fewer and larger units for the transport than
// elements.
at::Tensor rows_of(const at::Tensor& flat, std::int64_t first, std::int64_t count) {
  return flat.narrow(0, first, count).view({count / block_elements, block_elements});
}

// Elements of one rank's part that are rounded, exchanged and added at a time: the buffers stay small and
// what n ranks contribute near the caches. The bits do not depend on it.
std::int64_t piece_elements(std::int64_t ranks) {
  return std::max<std::int64_t>(block_elements << 7,
                                (std::int64_t{1} << 20) / ranks / block_elements * block_elements);
}

}  // namespace

GradientReducer::GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm,
                                 const at::TensorOptions& accumulation, parallel::Traffic purpose,
                                 const GradientWire& wire)
    : layout_(&layout), comm_(&comm), purpose_(purpose), wire_(wire) {
  ATHANOR_CHECK(layout.group_size() == comm.size(), "layout of {} ranks in a group of {}",
                layout.group_size(), comm.size());
  ATHANOR_CHECK(wire.type == base::WireType::full || accumulation.dtype() == at::kFloat,
                "gradients in {} are not rounded on the wire", accumulation.dtype().name());
  ATHANOR_CHECK(wire.type == base::WireType::full || accumulation.device().is_cpu(),
                "gradients on {} travel in full only", accumulation.device().str());
  const bool is_expert = purpose == parallel::Traffic::grad_expert;
  if (detail::are_stored(wire,
                         is_expert ? parallel::ParameterKind::expert : parallel::ParameterKind::dense)) {
    ATHANOR_CHECK(wire.type == base::WireType::fp8 && !wire.error_feedback,
                  "gradients are stored as an fp8 wire without error feedback carries them");
    stored_ = std::make_shared<detail::StoredGradientRecords>(layout.total(), wire.fp8_format);
  } else {
    flat_ = at::zeros({layout.total()}, accumulation);
  }
  shard_ = comm.size() == 1 ? flat_ : at::empty({layout.shard_total()}, accumulation);
  if (wire.error_feedback && comm.size() > 1) {
    residual_ = at::zeros({layout.total()}, accumulation);
  }
}

void GradientReducer::reduce_scatter(double gradient_scale) {
  if (comm_->size() == 1) {
    return;
  }
  if (wire_.type != base::WireType::full) {
    reduce_rounded(gradient_scale);
    return;
  }
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    at::Tensor sum = rows_of(shard_, bucket.shard_first, bucket.count / comm_->size());
    parallel::reduce_scatter_sum_into(sum, rows_of(flat_, bucket.first, bucket.count), *comm_, purpose_);
  }
}

std::int64_t GradientReducer::largest_piece() const {
  std::int64_t largest = 0;
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    largest = std::max(largest, bucket.count / comm_->size());
  }
  return std::min(largest, piece_elements(comm_->size()));
}

void GradientReducer::reduce_rounded(double gradient_scale) {
  const std::int64_t limit = largest_piece();
  const auto parts = detail::make_rounded_parts(wire_, comm_->size(), limit);
  const at::Tensor scratch = residual_.defined() ? at::empty({limit}, flat_.options()) : at::Tensor();
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    const std::int64_t part = bucket.count / comm_->size();
    for (std::int64_t done = 0; done < part; done += limit) {
      parts->begin(std::min(limit, part - done));
      round_piece(*parts, bucket, {done, 0, parts->count()}, gradient_scale, scratch);
      parts->sum(shard_.narrow(0, bucket.shard_first + done, parts->count()), *comm_, purpose_);
    }
  }
  comm_->traffic().add_losses({parts->losses().underflow, parts->losses().nonfinite});
}

void GradientReducer::round_piece(detail::WireParts& parts, const FlatLayout::Range& bucket,
                                  const Piece& piece, double gradient_scale, const at::Tensor& scratch) {
  const std::int64_t part = bucket.count / comm_->size();
  for (std::int64_t rank = 0; rank < comm_->size(); ++rank) {
    const std::int64_t first = bucket.first + rank * part + piece.first;
    if (stored_) {
      parts.take(stored_->records(first, piece.count), rank, piece.offset);
      continue;
    }
    at::Tensor gradient = flat_.narrow(0, first, piece.count);
    if (residual_.defined()) {
      gradient.add_(residual_.narrow(0, first, piece.count), 1.0 / gradient_scale);
    }
    parts.round(flat_, first, piece.count, rank, piece.offset);
    if (residual_.defined()) {
      const at::Tensor sent = scratch.narrow(0, 0, piece.count);
      parts.read_back(rank, piece.offset, sent);
      gradient.sub_(sent);
    }
  }
}

StartedBucket GradientReducer::start(std::size_t bucket_index, double gradient_scale,
                                     const parallel::Communicator& lane) {
  ATHANOR_CHECK(lane.size() == comm_->size() && lane.size() > 1, "a lane of {} ranks for a group of {}",
                lane.size(), comm_->size());
  const FlatLayout::Range& bucket = layout_->buckets()[bucket_index];
  const std::int64_t part = bucket.count / comm_->size();
  StartedBucket started;
  if (wire_.type == base::WireType::full) {
    started.parts_ = detail::make_full_parts(flat_.narrow(0, bucket.first, bucket.count), comm_->size());
  } else {
    started.parts_ = detail::make_rounded_parts(wire_, comm_->size(), part);
    const std::int64_t limit = largest_piece();
    const at::Tensor scratch = residual_.defined() ? at::empty({limit}, flat_.options()) : at::Tensor();
    for (std::int64_t done = 0; done < part; done += limit) {
      round_piece(*started.parts_, bucket, {done, done, std::min(limit, part - done)}, gradient_scale,
                  scratch);
    }
    comm_->traffic().add_losses({started.parts_->losses().underflow, started.parts_->losses().nonfinite});
  }
  started.exchange_ = started.parts_->start(lane, purpose_);
  started.sum_ = shard_.narrow(0, bucket.shard_first, part);
  return started;
}

StartedBucket::StartedBucket() = default;
StartedBucket::~StartedBucket() = default;
StartedBucket::StartedBucket(StartedBucket&&) noexcept = default;
StartedBucket& StartedBucket::operator=(StartedBucket&&) noexcept = default;

bool StartedBucket::test() {
  return exchange_.test();
}

void StartedBucket::finish() {
  exchange_.wait();
  parts_->add_up(sum_);
  parts_.reset();
}

void GradientReducer::finish_step(bool skipped, double gradient_scale) {
  if (!residual_.defined()) {
    return;
  }
  if (skipped) {
    flat_.zero_();  // what is not finite must not stay in the padding
  } else {
    at::mul_out(residual_, flat_, at::scalar_tensor(gradient_scale, flat_.options()));
  }
}

void GradientReducer::all_gather() {
  ATHANOR_CHECK(wire_.type == base::WireType::full, "sums of rounded gradients are not gathered");
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
