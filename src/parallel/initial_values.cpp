#include "parallel/initial_values.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "base/error.hpp"

namespace athanor::parallel {
namespace {

constexpr std::size_t num_pairs = normal_block_size / 2;

// Box-Muller over arrays, in loops that compilers turn into vector code: the library's log, sin and cos are
// calls.
struct PairArrays {
  std::array<double, num_pairs> u;         // (0, 1]
  std::array<double, num_pairs> turn;      // [-1/8, 1/8]: the angle within its quadrant, in turns
  std::array<double, num_pairs> swap;      // 1 where sine and cosine change places, else 0
  std::array<double, num_pairs> cos_sign;  // 1 or -1
  std::array<double, num_pairs> sin_sign;
};

void draw(PairArrays& pairs, std::uint64_t first_pair, const base::PhiloxStream& stream) {
  for (std::size_t j = 0; j < num_pairs; ++j) {
    const auto [first, second] = stream.normal_bits(first_pair + j);
    pairs.u[j] = (static_cast<double>(first >> 11) + 1.0) * 0x1.0p-53;
    // The angle is `fraction` * 2^-53 turns; the nearest quarter turn is taken out exactly.
    const auto fraction = static_cast<std::int64_t>(second >> 11);
    const std::int64_t quadrant = (fraction + (std::int64_t{1} << 50)) >> 51;
    pairs.turn[j] = static_cast<double>(fraction - (quadrant << 51)) * 0x1.0p-53;
    pairs.swap[j] = static_cast<double>(quadrant & 1);
    pairs.cos_sign[j] = ((quadrant + 1) & 2) != 0 ? -1.0 : 1.0;
    pairs.sin_sign[j] = (quadrant & 2) != 0 ? -1.0 : 1.0;
  }
}

// Value of the polynomial with these coefficients (constant term first).
template <std::size_t N>
inline double polynomial(const std::array<double, N>& coefficients, double x) {
  double value = coefficients[N - 1];
  for (std::size_t i = N - 1; i-- > 0;) {
    value = value * x + coefficients[i];
  }
  return value;
}

// 1/(2i+1): log((1+s)/(1-s)) = 2 s sum_i s^2i / (2i+1).
constexpr std::array<double, 11> log_series = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9, 1.0 / 11,
                                               1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};

// sign^i / (2i + first)!: the Taylor series of sine (first = 1, over x) and cosine (first = 0) in x^2.
constexpr std::array<double, 10> alternating_factorials(int first) {
  std::array<double, 10> coefficients{};
  double factorial = 1.0;
  for (int i = 0; i < 10; ++i) {
    if (i > 0) {
      factorial *= static_cast<double>(2 * i + first - 1) * static_cast<double>(2 * i + first);
    }
    coefficients[static_cast<std::size_t>(i)] = (i % 2 == 0 ? 1.0 : -1.0) / factorial;
  }
  return coefficients;
}
constexpr auto sin_series = alternating_factorials(1);
constexpr auto cos_series = alternating_factorials(0);

// Natural logarithm of a positive normal number.
inline double logarithm(double x) {
  constexpr std::uint64_t sqrt_half = std::bit_cast<std::uint64_t>(0.70710678118654752440);
  constexpr std::uint64_t bias = std::uint64_t{1023} << 52;
  const auto bits = std::bit_cast<std::uint64_t>(x);
  // x = m * 2^k with m in [sqrt(1/2), sqrt(2)); the exponent becomes a double through the bits of 2^52 + (k +
  // 1023).
  const std::uint64_t biased = (bits - sqrt_half + bias) >> 52;
  const double k =
      std::bit_cast<double>(biased | std::bit_cast<std::uint64_t>(0x1.0p52)) - (0x1.0p52 + 1023.0);
  const auto m = std::bit_cast<double>(bits - (biased << 52) + bias);
  const double s = (m - 1.0) / (m + 1.0);
  return 2.0 * s * polynomial(log_series, s * s) + k * 0.69314718055994530942;
}

// Consecutive elements of the flattened slice that are consecutive in the logical tensor too.
std::int64_t run_length(const ShardSpec& shard) {
  std::int64_t run = 1;
  for (std::size_t d = shard.local_shape.size(); d-- > 0;) {
    run *= shard.local_shape[d];
    if (shard.local_shape[d] != shard.global_shape[d]) {
      break;
    }
  }
  return run;
}

// out[i] = std * normal number of element first + i.
template <typename T>
void fill_run(T* out, std::int64_t first, std::int64_t count, double std, const base::PhiloxStream& stream) {
  std::array<double, normal_block_size> normals;
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t element = first + done;
    const std::int64_t skip = element % normal_block_size;
    const std::int64_t taken = std::min(normal_block_size - skip, count - done);
    normal_block(normals, static_cast<std::uint64_t>(element / normal_block_size), stream);
    for (std::int64_t i = 0; i < taken; ++i) {
      out[done + i] = static_cast<T>(normals[static_cast<std::size_t>(skip + i)] * std);
    }
    done += taken;
  }
}

template <typename T>
void fill_typed(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream) {
  T* out = slice.mutable_data_ptr<T>();
  const std::int64_t run = run_length(shard);
  constexpr std::int64_t elements_per_task = 1 << 15;
  at::parallel_for(0, slice.numel(), elements_per_task, [&](std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t count = std::min(end - begin, run - begin % run);
      fill_run(out + begin, shard.global_index(begin), count, std, stream);
      begin += count;
    }
  });
}

}  // namespace

void normal_block(std::span<double, normal_block_size> out, std::uint64_t block,
                  const base::PhiloxStream& stream) {
  PairArrays pairs;
  draw(pairs, block * num_pairs, stream);
  std::array<double, num_pairs> radius;
  for (std::size_t j = 0; j < num_pairs; ++j) {
    radius[j] = -2.0 * logarithm(pairs.u[j]);
  }
  for (double& value : radius) {  // apart from the loop above: sqrt may set errno, which keeps a loop scalar
    value = std::sqrt(value);
  }
  for (std::size_t j = 0; j < num_pairs; ++j) {
    const double angle = pairs.turn[j] * 6.283185307179586476925286766559;
    const double sine = angle * polynomial(sin_series, angle * angle);
    const double cosine = polynomial(cos_series, angle * angle);
    const double keep = 1.0 - pairs.swap[j];
    out[2 * j] = radius[j] * pairs.cos_sign[j] * (cosine * keep + sine * pairs.swap[j]);
    out[2 * j + 1] = radius[j] * pairs.sin_sign[j] * (sine * keep + cosine * pairs.swap[j]);
  }
}

void fill_normal(at::Tensor& slice, const ShardSpec& shard, double std, const base::PhiloxStream& stream) {
  ATHANOR_CHECK(slice.is_contiguous() && slice.numel() == shard.local_numel(),
                "{} elements for a slice of {}", slice.numel(), shard.local_numel());
  switch (slice.scalar_type()) {
    case at::kFloat:
      return fill_typed<float>(slice, shard, std, stream);
    case at::kDouble:
      return fill_typed<double>(slice, shard, std, stream);
    case at::kBFloat16:
      return fill_typed<at::BFloat16>(slice, shard, std, stream);
    case at::kHalf:
      return fill_typed<at::Half>(slice, shard, std, stream);
    default:
      throw base::InternalError("initial weights of type {} (float types are possible) choose another",
                                c10::toString(slice.scalar_type()));
  }
}

}  // namespace athanor::parallel
