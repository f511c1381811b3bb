// Sums in rank order by operations on whole tensors, as GPUs make them, have the bits of the loops of the
// CPU.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "parallel/collectives/rank_order.hpp"

namespace athanor::parallel {
namespace {

std::vector<at::Tensor> random_parts(std::int64_t numel, at::ScalarType type) {
  at::manual_seed(1);
  std::vector<at::Tensor> parts;
  for (int i = 0; i < 5; ++i) {
    parts.push_back((at::randn({numel}, at::kDouble) * std::pow(10.0, i % 3)).to(type));
  }
  return parts;
}

TEST(RankOrderByTensorOps, HasTheSameBits) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const at::ScalarType output_type : {type, type == at::kDouble ? at::kDouble : at::kFloat}) {
      for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max, ReduceOp::min}) {
        for (const std::int64_t numel : {0, 1, 3001}) {
          const auto parts = random_parts(numel, type);
          at::Tensor expected = at::empty({numel}, output_type);
          reduce_in_rank_order(expected, parts, op);
          at::Tensor output = at::empty({numel}, output_type);
          detail::reduce_by_tensor_ops(output, parts, op);
          EXPECT_TRUE(at::equal(output, expected))
              << c10::toString(type) << " to " << c10::toString(output_type);
        }
      }
    }
  }
}

TEST(RankOrderByTensorOps, OutputMayBeOneOfTheParts) {
  auto parts = random_parts(100, at::kFloat);
  at::Tensor expected = at::empty({100});
  reduce_in_rank_order(expected, parts, ReduceOp::sum);
  at::Tensor output = parts[0];
  detail::reduce_by_tensor_ops(output, parts, ReduceOp::sum);
  EXPECT_TRUE(at::equal(output, expected));
}

}  // namespace
}  // namespace athanor::parallel
