#include "parallel/collectives/rank_order.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

constexpr std::int64_t chunk_elements = 2048;  // of the accumulation type: stays in the first-level cache

template <typename Acc, typename Combine, typename In>
void combine_chunk(Acc* sum, const In* part, std::int64_t count, Combine combine) {
  for (std::int64_t i = 0; i < count; ++i) {
    sum[i] = combine(sum[i], static_cast<Acc>(part[i]));
  }
}

template <typename In, typename Out, typename Acc, typename Combine>
void reduce_typed(at::Tensor& output, std::span<const at::Tensor> parts, Combine combine) {
  std::vector<const In*> sources;
  sources.reserve(parts.size());
  for (const at::Tensor& part : parts) {
    sources.push_back(part.const_data_ptr<In>());
  }
  Out* out = output.mutable_data_ptr<Out>();
  const std::int64_t total = output.numel();
  std::array<Acc, chunk_elements> sum;
  for (std::int64_t first = 0; first < total; first += chunk_elements) {
    const std::int64_t count = std::min(chunk_elements, total - first);
    std::copy_n(sources[0] + first, count, sum.data());
    for (std::size_t r = 1; r < sources.size(); ++r) {
      combine_chunk(sum.data(), sources[r] + first, count, combine);
    }
    for (std::int64_t i = 0; i < count; ++i) {
      out[first + i] = static_cast<Out>(sum[static_cast<std::size_t>(i)]);
    }
  }
}

template <typename In, typename Out, typename Acc>
void reduce_op(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return reduce_typed<In, Out, Acc>(output, parts, [](Acc a, Acc b) { return a + b; });
    case ReduceOp::max:
      return reduce_typed<In, Out, Acc>(output, parts,
                                        [](Acc a, Acc b) { return a > b || std::isnan(a) ? a : b; });
    case ReduceOp::min:
      return reduce_typed<In, Out, Acc>(output, parts,
                                        [](Acc a, Acc b) { return a < b || std::isnan(a) ? a : b; });
  }
}

template <typename In, typename Acc>
void reduce_from(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op) {
  if (output.scalar_type() == c10::CppTypeToScalarType<In>::value) {
    return reduce_op<In, In, Acc>(output, parts, op);
  }
  if (output.scalar_type() == c10::CppTypeToScalarType<Acc>::value) {
    return reduce_op<In, Acc, Acc>(output, parts, op);
  }
  throw base::InternalError(
      "a sum over ranks of {} was asked in {} (the type of the parts or their accumulation type "
      "is possible) pass such a tensor",
      c10::toString(parts[0].scalar_type()), c10::toString(output.scalar_type()));
}

}  // namespace

void detail::reduce_by_tensor_ops(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op) {
  const at::ScalarType type = parts[0].scalar_type();
  const at::ScalarType sum_type = type == at::kDouble ? at::kDouble : at::kFloat;
  ATHANOR_CHECK(
      at::isFloatingType(type) && (output.scalar_type() == type || output.scalar_type() == sum_type),
      "a sum over ranks of {} in {}", c10::toString(type), c10::toString(output.scalar_type()));
  at::Tensor sum = parts[0].to(sum_type, /*non_blocking=*/false, /*copy=*/true).view({-1});
  for (std::size_t r = 1; r < parts.size(); ++r) {
    const at::Tensor part = parts[r].view({-1}).to(sum_type);
    switch (op) {
      case ReduceOp::sum:
        sum.add_(part);
        break;
      case ReduceOp::max:
        at::maximum_out(sum, sum, part);
        break;
      case ReduceOp::min:
        at::minimum_out(sum, sum, part);
        break;
    }
  }
  output.view({-1}).copy_(sum);
}

void reduce_in_rank_order(at::Tensor& output, std::span<const at::Tensor> parts, ReduceOp op) {
  ATHANOR_CHECK(!parts.empty() && output.is_contiguous(),
                "nothing to reduce, or into a non-contiguous tensor");
  for (const at::Tensor& part : parts) {
    ATHANOR_CHECK(part.is_contiguous() && part.numel() == output.numel() &&
                      part.scalar_type() == parts[0].scalar_type(),
                  "contributions to a sum over ranks differ in type or size");
  }
  if (!output.is_cpu()) {
    return detail::reduce_by_tensor_ops(output, parts, op);
  }
  switch (parts[0].scalar_type()) {
    case at::kFloat:
      return reduce_from<float, float>(output, parts, op);
    case at::kDouble:
      return reduce_from<double, double>(output, parts, op);
    case at::kBFloat16:
      return reduce_from<at::BFloat16, float>(output, parts, op);
    case at::kHalf:
      return reduce_from<at::Half, float>(output, parts, op);
    default:
      throw base::InternalError(
          "a sum over ranks of {} in rank order (it is for f32, f64, bf16 and fp16) use the "
          "integer reduction or convert",
          c10::toString(parts[0].scalar_type()));
  }
}

}  // namespace athanor::parallel
