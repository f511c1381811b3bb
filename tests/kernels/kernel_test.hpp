// What kernel tests share: random arrays of any element type and comparison against the reference in f64.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/element.hpp"

namespace athanor::tests {

/// Rounding of the type, relative.
template <typename T>
constexpr double unit_roundoff() {
  if constexpr (std::is_same_v<T, double>) {
    return 1.2e-16;
  } else if constexpr (std::is_same_v<T, float>) {
    return 6e-8;
  } else if constexpr (std::is_same_v<T, c10::Half>) {
    return 4.9e-4;
  } else {
    return 3.9e-3;
  }
}

/// Normally distributed values that T represents exactly.
template <typename T>
std::vector<T> random_values(std::int64_t n, std::uint64_t seed, double scale = 1.0) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<T> out(static_cast<std::size_t>(n));
  for (T& value : out) {
    value = static_cast<T>(static_cast<float>(normal(generator)));
  }
  return out;
}

template <typename T>
std::vector<double> widen(const std::vector<T>& values) {
  std::vector<double> out(values.size());
  std::transform(values.begin(), values.end(), out.begin(), [](T x) { return static_cast<double>(x); });
  return out;
}

/// EXPECTs |actual - expected| <= allowed * (|expected| + largest |expected|/2) for each element.
template <typename T>
void expect_near(const std::vector<T>& actual, const std::vector<double>& expected, double allowed,
                 const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double largest = 0.0;
  for (const double value : expected) {
    largest = std::max(largest, std::abs(value));
  }
  for (std::size_t i = 0; i < actual.size(); ++i) {
    ASSERT_LE(std::abs(static_cast<double>(actual[i]) - expected[i]),
              allowed * (std::abs(expected[i]) + largest / 2.0))
        << what << " element " << i << ": " << static_cast<double>(actual[i]) << " against " << expected[i];
  }
}

/// Widths that are odd, short, multiples of the vector length, and one more.
inline const std::vector<std::int64_t>& test_widths() {
  static const std::vector<std::int64_t> widths = {1, 3, 16, 17, 64, 130, 257};
  return widths;
}

using ElementTypes = ::testing::Types<float, double, c10::BFloat16, c10::Half>;

}  // namespace athanor::tests
