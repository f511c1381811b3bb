#include "optim/detail/stored_gradients.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"
#include "optim/detail/fp8_parts.hpp"

namespace athanor::optim::detail {
namespace {

// Elements that are in f32 at a time where a rank reads its own: near the caches, and few calls.
constexpr std::int64_t piece_elements = std::int64_t{1} << 18;

}  // namespace

bool are_stored(const GradientWire& wire, parallel::ParameterKind kind) {
  return wire.stored == StoredGradients::all ||
         (wire.stored == StoredGradients::experts && kind == parallel::ParameterKind::expert);
}

StoredGradientRecords::StoredGradientRecords(std::int64_t total, base::Fp8Format format)
    : format_(format), records_(at::zeros({total / block_elements, record_bytes}, at::kByte)) {
  ATHANOR_CHECK(total % block_elements == 0, "{} elements are no whole blocks", total);
}

void StoredGradientRecords::put(std::int64_t first, const at::Tensor& gradient,
                                parallel::TrafficCounters& traffic) {
  const at::NoGradGuard no_grad;
  const at::Tensor flat = gradient.view({gradient.numel()});
  const std::int64_t whole = flat.numel() / block_elements * block_elements;
  kernels::Fp8Counts counts;
  quantize_part(flat, 0, whole, format_, records(first, whole), counts);
  if (const std::int64_t rest = flat.numel() - whole; rest > 0) {
    const at::Tensor padded = at::zeros({block_elements}, at::kFloat);
    padded.narrow(0, 0, rest).copy_(flat.narrow(0, whole, rest));
    quantize_part(padded, 0, block_elements, format_, records(first + whole, block_elements), counts);
  }
  traffic.add_losses({counts.underflow, counts.nonfinite});
}

at::Tensor StoredGradientRecords::records(std::int64_t first, std::int64_t count) const {
  ATHANOR_CHECK(first % block_elements == 0 && count % block_elements == 0,
                "elements {} to {} are no whole blocks", first, first + count);
  return records_.narrow(0, first / block_elements, count / block_elements);
}

at::Tensor StoredGradientRecords::read(std::int64_t first, std::int64_t count) const {
  at::Tensor numbers = at::empty({count}, at::kFloat);
  dequantize_part(records(first, count), format_, numbers, 0, count);
  return numbers;
}

void StoredGradientRecords::for_each_piece(
    const std::function<void(std::int64_t first, const at::Tensor& numbers)>& function) const {
  const std::int64_t total = records_.size(0) * block_elements;
  for (std::int64_t first = 0; first < total; first += piece_elements) {
    function(first, read(first, std::min(piece_elements, total - first)));
  }
}

}  // namespace athanor::optim::detail
