#include "optim/grad_norm.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <span>

#include "base/error.hpp"
#include "kernels/tensor_kernels.hpp"
#include "optim/bucket.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::optim {
namespace {

constexpr int digit_bits = 32;
constexpr std::uint64_t digit_mask = 0xffffffffU;
constexpr int smallest_exponent = -1074;  // of the least denormal

}  // namespace

void SquareSum::add(const at::Tensor& gradient) {
  ATHANOR_CHECK(gradient.is_contiguous() && gradient.numel() % block_elements == 0,
                "{} elements, blocks of {}", gradient.numel(), block_elements);
  at::Tensor blocks = at::empty({gradient.numel() / block_elements}, gradient.options().dtype(at::kDouble));
  kernels::kernels_of(gradient).squares_of_parts(gradient, block_elements, blocks);
  blocks = blocks.cpu();
  const std::span<const double> sums(blocks.const_data_ptr<double>(),
                                     static_cast<std::size_t>(blocks.numel()));
  for (const double sum : sums) {
    add_value(sum);
  }
}

void SquareSum::add_value(double value) {
  if (!std::isfinite(value)) {
    ++non_finite_;
    return;
  }
  const auto bits = std::bit_cast<std::uint64_t>(value);
  const std::uint64_t exponent = bits >> 52;  // the sign bit of a square is 0
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const std::uint64_t mantissa = exponent == 0 ? fraction : fraction | (std::uint64_t{1} << 52);
  const std::uint64_t shift = exponent == 0 ? 0 : exponent - 1;
  const std::size_t digit = shift / digit_bits;
  const int bit = static_cast<int>(shift % digit_bits);
  digits_[digit] += static_cast<std::int64_t>((mantissa << bit) & digit_mask);
  digits_[digit + 1] += static_cast<std::int64_t>((mantissa >> (digit_bits - bit)) & digit_mask);
  digits_[digit + 2] += bit == 0 ? 0 : static_cast<std::int64_t>(mantissa >> (2 * digit_bits - bit));
}

void SquareSum::carry() {
  for (std::size_t i = 0; i + 1 < num_digits; ++i) {
    digits_[i + 1] += digits_[i] >> digit_bits;
    digits_[i] &= static_cast<std::int64_t>(digit_mask);
  }
}

void SquareSum::all_reduce(const parallel::Communicator& comm) {
  carry();
  at::Tensor wire = at::empty({static_cast<std::int64_t>(num_digits) + 1}, at::kLong);
  auto* numbers = wire.mutable_data_ptr<std::int64_t>();
  std::copy(digits_.begin(), digits_.end(), numbers);
  numbers[num_digits] = non_finite_;
  parallel::all_reduce_(wire, parallel::ReduceOp::sum, comm, parallel::Traffic::other);
  numbers = wire.mutable_data_ptr<std::int64_t>();
  std::copy(numbers, numbers + num_digits, digits_.begin());
  non_finite_ = numbers[num_digits];
  carry();
}

double SquareSum::value() const {
  if (non_finite_ > 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  SquareSum canonical = *this;
  canonical.carry();
  double sum = 0.0;
  for (std::size_t i = 0; i < num_digits; ++i) {
    sum += std::ldexp(static_cast<double>(canonical.digits_[i]),
                      digit_bits * static_cast<int>(i) + smallest_exponent);
  }
  return sum;
}

double clip_coefficient(double norm, double clip) {
  return clip > 0.0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0;
}

}  // namespace athanor::optim
