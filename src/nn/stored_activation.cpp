#include "nn/stored_activation.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <atomic>

#include "base/error.hpp"
#include "kernels/fp8.hpp"

namespace athanor::nn {

namespace {

std::atomic<std::int64_t> total_numbers{0};
std::atomic<std::int64_t> total_bytes{0};

/// The format is that of the codes' type, so that a kept tensor says itself how to read it.
at::ScalarType type_of(base::Fp8Format format) {
  return format == base::Fp8Format::e4m3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
}
base::Fp8Format format_of(const at::Tensor& codes) {
  return codes.scalar_type() == at::kFloat8_e4m3fn ? base::Fp8Format::e4m3 : base::Fp8Format::e5m2;
}

/// Codes and scales as the kernels see them: a row is one token, whatever its dimensions.
kernels::Fp8Rows rows_of(const at::Tensor& x) {
  ATHANOR_CHECK(x.dim() >= 2 && x.dim() <= 4, "a kept tensor has {} dimensions", x.dim());
  const std::int64_t tokens = x.dim() == 2 ? x.size(0) : x.size(0) * x.size(1);
  std::int64_t width = x.size(-1);
  if (x.dim() == 4) {
    width *= x.size(2);
  }
  return kernels::Fp8Rows::apart(tokens, width);
}

/// Calls function(T()) for the element type of what is rounded.
template <typename Function>
void for_type(at::ScalarType type, const Function& function) {
  ATHANOR_CHECK(type != at::kDouble, "f64 tensors are kept as they are");
  AT_DISPATCH_SWITCH(type, "stored_activation",
                     AT_DISPATCH_CASE(at::kFloat, [&] { function(scalar_t()); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { function(scalar_t()); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { function(scalar_t()); }));
}

void quantize(const at::Tensor& x, const StoredActivation& to) {
  ATHANOR_CHECK(x.is_cpu(), "activations on {} are not kept in FP8", x.device().str());
  const kernels::Fp8Rows rows = rows_of(x);
  kernels::Fp8Counts counts;
  for_type(x.scalar_type(), [&]<typename T>(T) {
    kernels::cpu::quantize_fp8_blocks(x.const_data_ptr<T>(), rows, format_of(to.data),
                                      static_cast<std::uint8_t*>(to.data.mutable_data_ptr()),
                                      to.scales.mutable_data_ptr<float>(), counts);
  });
  total_numbers.fetch_add(x.numel(), std::memory_order_relaxed);
  total_bytes.fetch_add(to.bytes(), std::memory_order_relaxed);
}

void dequantize(const StoredActivation& kept, const at::Tensor& to) {
  for_type(to.scalar_type(), [&]<typename T>(T) {
    kernels::cpu::dequantize_fp8_blocks(static_cast<const std::uint8_t*>(kept.data.const_data_ptr()),
                                        kept.scales.const_data_ptr<float>(), rows_of(kept.data),
                                        format_of(kept.data), to.mutable_data_ptr<T>());
  });
}

at::Tensor empty_scales(const kernels::Fp8Rows& rows) {
  return at::empty({rows.rows, rows.scale_stride}, at::kFloat);
}

}  // namespace

std::int64_t StoredActivation::bytes() const {
  return static_cast<std::int64_t>(data.nbytes() + (is_fp8() ? scales.nbytes() : 0));
}

StoredActivation StoredActivation::narrow(std::int64_t first, std::int64_t count) const {
  return {data.narrow(0, first, count), is_fp8() ? scales.narrow(0, first, count) : at::Tensor()};
}

Keep keep_if_backward(const Keep& keep) {
  return at::GradMode::is_enabled() ? keep : std::nullopt;
}

StoredActivation store_activation(const at::Tensor& x, const Keep& keep) {
  if (!keep) {
    return {x, at::Tensor()};
  }
  const at::NoGradGuard no_grad;
  StoredActivation kept{at::empty(x.sizes(), type_of(*keep)), empty_scales(rows_of(x))};
  quantize(x.contiguous(), kept);
  return kept;
}

StoredActivation allocate_rows(std::int64_t tokens, std::int64_t width, const at::TensorOptions& options,
                               const Keep& keep) {
  if (!keep) {
    return {at::empty({tokens, width}, options), at::Tensor()};
  }
  return {at::empty({tokens, width}, type_of(*keep)), empty_scales(kernels::Fp8Rows::apart(tokens, width))};
}

void store_rows(const StoredActivation& to, const at::Tensor& x) {
  ATHANOR_CHECK(to.data.sizes() == x.sizes() && x.dim() == 2, "rows are kept in a place of another size");
  if (to.is_fp8()) {
    quantize(x.contiguous(), to);
  } else {
    at::Tensor(to.data).copy_(x);
  }
}

at::Tensor restore_activation(const StoredActivation& kept, at::ScalarType type) {
  if (!kept.is_fp8()) {
    return kept.data;
  }
  at::Tensor x = at::empty(kept.data.sizes(), type);
  dequantize(kept, x);
  return x;
}

at::Tensor restore_rows(const StoredActivation& kept, const at::Tensor& scratch) {
  if (!kept.is_fp8()) {
    return kept.data;
  }
  ATHANOR_CHECK(scratch.dim() == 2 && scratch.is_contiguous() && scratch.size(0) >= kept.data.size(0) &&
                    scratch.size(1) == kept.data.size(1),
                "no room for the kept rows");
  const at::Tensor rows = scratch.narrow(0, 0, kept.data.size(0));
  dequantize(kept, rows);
  return rows;
}

StoredTotals stored_totals() {
  return {total_numbers.load(std::memory_order_relaxed), total_bytes.load(std::memory_order_relaxed)};
}

}  // namespace athanor::nn
