// Inputs that the tests of kernel bodies (on the host) and of CUDA kernels share.
#pragma once

#include <array>

#include "kernels/bodies/fp8.hpp"
#include "kernels/kernel_test.hpp"
#include "kernels/rotary.hpp"

namespace athanor::tests {

/// Whether two numbers have the same bits, or are both NaN.
template <typename T>
bool same_number(T a, T b) {
  return kernels::bodies::load(a) == kernels::bodies::load(b)
             ? std::signbit(kernels::bodies::load(a)) == std::signbit(kernels::bodies::load(b))
             : std::isnan(kernels::bodies::load(a)) && std::isnan(kernels::bodies::load(b));
}

template <typename T>
void expect_same(const std::vector<T>& actual, const std::vector<T>& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if constexpr (std::is_integral_v<T>) {
      ASSERT_EQ(actual[i], expected[i]) << what << " element " << i;
    } else {
      ASSERT_TRUE(same_number(actual[i], expected[i]))
          << what << " element " << i << ": " << static_cast<double>(actual[i]) << " for "
          << static_cast<double>(expected[i]);
    }
  }
}

/// Rows of tokens sorted somehow: every slot once, some choices dropped.
inline std::vector<std::int64_t> example_slots(std::int64_t tokens, std::int64_t choices) {
  std::vector<std::int64_t> slots(static_cast<std::size_t>(tokens * choices));
  const auto n = static_cast<std::int64_t>(slots.size());
  for (std::int64_t i = 0; i < n; ++i) {
    slots[static_cast<std::size_t>(i)] = i % 5 == 3 ? -1 : n - 1 - i;
  }
  return slots;
}

/// Destinations of add_rows with repeated and skipped ones.
inline std::vector<std::int64_t> example_rows(std::int64_t rows, std::int64_t destinations) {
  std::vector<std::int64_t> out(static_cast<std::size_t>(rows));
  for (std::int64_t i = 0; i < rows; ++i) {
    out[static_cast<std::size_t>(i)] = i % 7 == 6 ? -1 : i * i % destinations;
  }
  return out;
}

/// A label in the slice, at either end, and outside.
inline std::vector<std::int64_t> example_labels(std::int64_t rows, std::int64_t vocab) {
  std::vector<std::int64_t> labels(static_cast<std::size_t>(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::array<std::int64_t, 5> kinds = {0, vocab - 1, -1, vocab, vocab / 2};
    labels[static_cast<std::size_t>(r)] = kinds[static_cast<std::size_t>(r % 5)];
  }
  return labels;
}

/// Heads of tokens that lie apart.
inline kernels::HeadsShape example_heads(std::int64_t tokens) {
  return {.tokens = tokens, .heads = 3, .head_dim = 70, .token_stride = 3 * 70 + 5};
}

}  // namespace athanor::tests
