#include "optim/gradient_reducer.hpp"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "optim/detail/fp8_parts.hpp"
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

// One piece of every rank's part of the flat storage on its way through bf16.
class Bf16Piece {
 public:
  Bf16Piece(const parallel::Communicator& comm, std::int64_t count)
      : comm_(comm),
        sent_(at::empty({comm.size() * count / block_elements, block_elements}, at::kBFloat16)) {}

  void round(const at::Tensor& flat, std::int64_t rank, std::int64_t first, std::int64_t count) const {
    part(rank, count).copy_(flat.narrow(0, first, count));
  }
  void read_back(std::int64_t rank, const at::Tensor& rounded) const {
    at::Tensor target = rounded;
    target.copy_(part(rank, rounded.numel()));
  }
  void sum(const at::Tensor& sum, parallel::Traffic purpose) const {
    at::Tensor output = sum.view({-1, block_elements});
    parallel::reduce_scatter_sum_into(output, sent_.narrow(0, 0, output.size(0) * comm_.size()), comm_,
                                      purpose);
  }

 private:
  at::Tensor part(std::int64_t rank, std::int64_t count) const {
    return sent_.view({-1}).narrow(0, rank * count, count);
  }
  const parallel::Communicator& comm_;
  at::Tensor sent_;
};

// The same through FP8: bytes and scales go together, in records.
class Fp8Piece {
 public:
  Fp8Piece(const parallel::Communicator& comm, std::int64_t count, base::Fp8Format format)
      : comm_(comm), format_(format) {
    const std::int64_t records = comm.size() * count / block_elements;
    sent_ = at::empty({records, detail::record_bytes}, at::kByte);
    received_ = at::empty_like(sent_);
  }

  void round(const at::Tensor& flat, std::int64_t rank, std::int64_t first, std::int64_t count) {
    detail::quantize_part(flat, first, count, format_, part(rank, count), counts_);
  }
  void read_back(std::int64_t rank, const at::Tensor& rounded) const {
    detail::dequantize_part(part(rank, rounded.numel()), format_, rounded, 0, rounded.numel());
  }
  void sum(const at::Tensor& sum, parallel::Traffic purpose) const {
    const std::int64_t records = sum.numel() / block_elements;
    const std::vector<std::int64_t> rows(static_cast<std::size_t>(comm_.size()), records);
    const at::Tensor received = received_.narrow(0, 0, comm_.size() * records);
    parallel::all_to_all_v_into(received, sent_.narrow(0, 0, comm_.size() * records), rows, rows, comm_,
                                purpose);
    detail::sum_parts(received, comm_.size(), format_, sum);
  }
  const kernels::Fp8Counts& counts() const { return counts_; }

 private:
  at::Tensor part(std::int64_t rank, std::int64_t count) const {
    const std::int64_t records = count / block_elements;
    return sent_.narrow(0, rank * records, records);
  }
  const parallel::Communicator& comm_;
  base::Fp8Format format_;
  at::Tensor sent_;
  at::Tensor received_;
  kernels::Fp8Counts counts_;
};

}  // namespace

GradientReducer::GradientReducer(const FlatLayout& layout, const parallel::Communicator& comm,
                                 at::ScalarType accumulation, parallel::Traffic purpose,
                                 const GradientWire& wire)
    : layout_(&layout), comm_(&comm), purpose_(purpose), wire_(wire) {
  ATHANOR_CHECK(layout.group_size() == comm.size(), "layout of {} ranks in a group of {}",
                layout.group_size(), comm.size());
  ATHANOR_CHECK(wire.type == base::WireType::full || accumulation == at::kFloat,
                "gradients in {} are not rounded on the wire", c10::toString(accumulation));
  flat_ = at::zeros({layout.total()}, accumulation);
  shard_ = comm.size() == 1 ? flat_ : at::empty({layout.shard_total()}, accumulation);
  if (wire.error_feedback && comm.size() > 1) {
    residual_ = at::zeros({layout.total()}, accumulation);
  }
}

void GradientReducer::reduce_scatter(double gradient_scale) {
  if (comm_->size() == 1) {
    return;
  }
  if (wire_.type == base::WireType::bf16) {
    Bf16Piece piece(*comm_, largest_piece());
    reduce_rounded(piece, gradient_scale);
    return;
  }
  if (wire_.type == base::WireType::fp8) {
    Fp8Piece piece(*comm_, largest_piece(), wire_.fp8_format);
    reduce_rounded(piece, gradient_scale);
    comm_->traffic().add_losses({piece.counts().underflow, piece.counts().nonfinite});
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

template <typename Piece>
void GradientReducer::reduce_rounded(Piece& piece, double gradient_scale) {
  const std::int64_t limit = largest_piece();
  const at::Tensor rounded = residual_.defined() ? at::empty({limit}, flat_.options()) : at::Tensor();
  for (const FlatLayout::Range& bucket : layout_->buckets()) {
    const std::int64_t part = bucket.count / comm_->size();
    for (std::int64_t done = 0; done < part; done += limit) {
      const std::int64_t count = std::min(limit, part - done);
      for (std::int64_t rank = 0; rank < comm_->size(); ++rank) {
        const std::int64_t first = bucket.first + rank * part + done;
        at::Tensor gradient = flat_.narrow(0, first, count);
        if (residual_.defined()) {
          gradient.add_(residual_.narrow(0, first, count), 1.0 / gradient_scale);
        }
        piece.round(flat_, rank, first, count);
        if (residual_.defined()) {
          const at::Tensor sent = rounded.narrow(0, 0, count);
          piece.read_back(rank, sent);
          gradient.sub_(sent);
        }
      }
      piece.sum(shard_.narrow(0, bucket.shard_first + done, count), purpose_);
    }
  }
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
