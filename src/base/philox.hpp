// Counter-based random numbers: every number is a pure function of what it is for, so it does not depend on
// the layout, on the order of calls or on how often a step was run. Philox4x32-10 (Salmon et al., SC 2011)
// through Random123.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

#include <Random123/philox.h>

#include "base/hash.hpp"

namespace athanor::base {

/// What a random number is for; two purposes never share numbers.
enum class RandomPurpose : std::uint32_t {
  initial_weight = 1,
  dropout = 2,
  data_permutation = 3,
  mixture = 4,
  generation = 5,
  test = 6,
  signal_sampling = 7,
};

/// A stream of Philox blocks for one (seed, purpose, site name).
class PhiloxStream {
 public:
  PhiloxStream(std::uint64_t seed, RandomPurpose purpose, std::string_view site) {
    const std::uint64_t key =
        seed ^ (hash_string(site) * 0x9E3779B97F4A7C15ull + static_cast<std::uint32_t>(purpose));
    key_ = {{static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32)}};
  }

  /// Four 32-bit numbers for the counter (a, b), e.g. (global sample index, position).
  std::array<std::uint32_t, 4> block(std::uint64_t a, std::uint64_t b = 0) const {
    const r123::Philox4x32 generator;
    const r123::Philox4x32::ctr_type counter = {
        {static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(a >> 32), static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(b >> 32)}};
    const auto out = generator(counter, key_);
    return {out[0], out[1], out[2], out[3]};
  }

  /// A 64-bit number for the counter (a, b).
  std::uint64_t bits(std::uint64_t a, std::uint64_t b = 0) const {
    const auto out = block(a, b);
    return (static_cast<std::uint64_t>(out[1]) << 32) | out[0];
  }

  /// Uniform in [0, 1) with 53 bits.
  double uniform(std::uint64_t a, std::uint64_t b = 0) const {
    return static_cast<double>(bits(a, b) >> 11) * 0x1.0p-53;
  }

  /// Standard normal (Box-Muller) for element `index`. Elements are drawn in pairs: normal(2i) and
  /// normal(2i+1) share a block.
  double normal(std::uint64_t index) const {
    const auto pair = normal_pair(index / 2);
    return pair[index % 2];
  }

  /// The two 64-bit numbers behind the normals of elements 2*pair_index and 2*pair_index+1.
  std::array<std::uint64_t, 2> normal_bits(std::uint64_t pair_index) const {
    const auto out = block(pair_index, 0x6e6f726dull);
    return {(static_cast<std::uint64_t>(out[1]) << 32) | out[0],
            (static_cast<std::uint64_t>(out[3]) << 32) | out[2]};
  }

  /// The standard normals of elements 2*pair_index and 2*pair_index+1.
  std::array<double, 2> normal_pair(std::uint64_t pair_index) const {
    const auto [first, second] = normal_bits(pair_index);
    // (0, 1] keeps the logarithm finite.
    const double u = (static_cast<double>(first >> 11) + 1.0) * 0x1.0p-53;
    const double v = static_cast<double>(second >> 11) * 0x1.0p-53;
    const double radius = std::sqrt(-2.0 * std::log(u));
    const double angle = 6.283185307179586476925286766559 * v;
    return {radius * std::cos(angle), radius * std::sin(angle)};
  }

 private:
  r123::Philox4x32::key_type key_{};
};

}  // namespace athanor::base
