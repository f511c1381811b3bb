// The arithmetic of FP8 gradients for any number of ranks, against sums in f64 and against the ways of
// reducing FP8 gradients that scale before or after the sum.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "optim/detail/fp8_parts.hpp"

namespace athanor::optim {
namespace {

constexpr std::int64_t elements = 64 * block_elements;

/// Gradients of one rank: like layers of very different sizes, a few large elements in each block.
at::Tensor rank_gradient(std::int64_t rank, double scale = 1.0) {
  const at::Tensor index = at::arange(elements, at::kDouble);
  // A cheap hash to (-1, 1), then heavier tails and a scale for each block.
  const at::Tensor hash =
      at::frac(at::sin(index * 12.9898 + static_cast<double>(rank) * 78.233) * 43758.5453);
  const at::Tensor blocks = at::floor(index / static_cast<double>(block_elements));
  return (hash * hash.abs().pow(3) * at::exp(at::remainder(blocks, 7.0) * -2.0) * scale).to(at::kFloat);
}

/// The reduction of design and product: every rank's part quantised once, summed in rank order in f32.
at::Tensor reduce(const std::vector<at::Tensor>& gradients, base::Fp8Format format,
                  kernels::Fp8Counts* counts = nullptr) {
  const auto ranks = static_cast<std::int64_t>(gradients.size());
  const std::int64_t records = elements / block_elements;
  const at::Tensor wire = at::empty({ranks * records, detail::record_bytes}, at::kByte);
  kernels::Fp8Counts lost;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    detail::quantize_part(gradients[static_cast<std::size_t>(rank)], 0, elements, format,
                          wire.narrow(0, rank * records, records), lost);
  }
  const at::Tensor sum = at::empty({elements}, at::kFloat);
  detail::sum_parts(wire, ranks, format, sum);
  if (counts != nullptr) {
    *counts = lost;
  }
  return sum;
}

std::vector<at::Tensor> gradients_of(std::int64_t ranks, double scale = 1.0) {
  std::vector<at::Tensor> gradients;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    gradients.push_back(rank_gradient(rank, scale));
  }
  return gradients;
}

at::Tensor exact_sum(const std::vector<at::Tensor>& gradients) {
  at::Tensor sum = at::zeros({elements}, at::kDouble);
  for (const at::Tensor& gradient : gradients) {
    sum += gradient.to(at::kDouble);
  }
  return sum;
}

double relative_error(const at::Tensor& value, const at::Tensor& exact) {
  return (value.to(at::kDouble) - exact).norm().item<double>() / exact.norm().item<double>();
}

at::ScalarType type_of(base::Fp8Format format) {
  return format == base::Fp8Format::e4m3 ? at::kFloat8_e4m3fn : at::kFloat8_e5m2;
}
at::Tensor through_fp8(const at::Tensor& values, base::Fp8Format format) {
  return values.to(type_of(format)).to(at::kFloat);
}

TEST(Fp8Gradients, ErrorIsFlatFromTwoToSixteenRanks) {
  for (const auto format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    std::vector<double> errors, hop_by_hop;
    for (const std::int64_t ranks : {2, 3, 4, 8, 16}) {
      const std::vector<at::Tensor> gradients = gradients_of(ranks);
      errors.push_back(relative_error(reduce(gradients, format), exact_sum(gradients)));
      // What an all-reduce in FP8 does: every partial sum is rounded again (scaled so that none overflows).
      const double scale = 16.0;
      at::Tensor partial = through_fp8(gradients[0] * scale, format);
      for (std::size_t rank = 1; rank < gradients.size(); ++rank) {
        partial = through_fp8(partial + through_fp8(gradients[rank] * scale, format), format);
      }
      hop_by_hop.push_back(relative_error(partial / scale, exact_sum(gradients)));
      std::printf("%s, %2lld ranks: relative error %.5f; rounding every partial sum %.5f\n",
                  format == base::Fp8Format::e4m3 ? "e4m3" : "e5m2", static_cast<long long>(ranks),
                  errors.back(), hop_by_hop.back());
    }
    const auto [least, most] = std::minmax_element(errors.begin(), errors.end());
    EXPECT_LE(*most, 1.1 * *least);
    EXPECT_GT(*least, 1e-3);  // it does round
    EXPECT_LE(*most, format == base::Fp8Format::e4m3 ? 0.04 : 0.08);
    EXPECT_GT(hop_by_hop.back(), 1.5 * errors.back());
  }
}

// Dividing by the number of ranks before one FP8 cast loses what is below the format's range.
TEST(Fp8Gradients, PreScalingWouldUnderflow) {
  for (const auto format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    const double size = format == base::Fp8Format::e4m3 ? 0x1p-9 : 0x1p-16;  // the format's smallest number
    const std::vector<at::Tensor> gradients = gradients_of(16, size);
    for (const at::Tensor& gradient : gradients) {
      EXPECT_EQ(through_fp8(gradient / 16.0, format).count_nonzero().item<std::int64_t>(), 0);
    }
    kernels::Fp8Counts counts;
    EXPECT_LE(relative_error(reduce(gradients, format, &counts), exact_sum(gradients)), 0.08);
    // Only numbers far below their own block's largest become zero.
    EXPECT_LT(counts.underflow, 16 * elements / 10);
  }
}

// Adding in FP8 and dividing afterwards overflows where the sum is beyond the format's range.
TEST(Fp8Gradients, PostScalingWouldOverflow) {
  for (const auto format : {base::Fp8Format::e4m3, base::Fp8Format::e5m2}) {
    const double largest = format == base::Fp8Format::e4m3 ? 448.0 : 57344.0;
    std::vector<at::Tensor> gradients;
    for (std::int64_t rank = 0; rank < 16; ++rank) {
      gradients.push_back(rank_gradient(rank).abs() * (largest / 4.0) + largest / 4.0);
    }
    at::Tensor partial = through_fp8(gradients[0], format);
    for (std::size_t rank = 1; rank < gradients.size(); ++rank) {
      partial = through_fp8(partial + through_fp8(gradients[rank], format), format);
    }
    const at::Tensor exact = exact_sum(gradients);
    EXPECT_GT(relative_error(at::nan_to_num(partial, 0.0, 0.0, 0.0), exact), 0.5);
    EXPECT_LE(relative_error(reduce(gradients, format), exact), 0.04);
    EXPECT_GT(exact.max().item<double>(), 4.0 * largest);
  }
}

TEST(Fp8Gradients, AnySizeOfGradientsRoundsAlike) {
  const double error =
      relative_error(reduce(gradients_of(4), base::Fp8Format::e4m3), exact_sum(gradients_of(4)));
  for (const double scale : {1e-25, 1e-12, 1e12, 1e30}) {
    const std::vector<at::Tensor> gradients = gradients_of(4, scale);
    EXPECT_NEAR(relative_error(reduce(gradients, base::Fp8Format::e4m3), exact_sum(gradients)), error,
                0.05 * error);
  }
}

}  // namespace
}  // namespace athanor::optim
