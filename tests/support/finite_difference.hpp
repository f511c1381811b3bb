// Checks of hand-written gradients against central differences, and of tensors against each other.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/ATen.h>

namespace athanor::tests {

struct FiniteDifferenceOptions {
  double step = 1e-5;
  double tolerance =
      1e-7;                ///< of |analytic - numeric|, relative to the largest |gradient| of the same tensor
  double absolute = 1e-9;  ///< added to the tolerance: gradients that are all zero are ordinary
  std::int64_t max_elements =
      64;  ///< elements checked of each tensor, chosen at random when it has more; 0: all
  std::uint64_t seed = 1;
};

/// A contiguous f64 tensor that is varied in place, and the gradient claimed for it.
struct CheckedGradient {
  at::Tensor variable;
  at::Tensor gradient;  ///< undefined counts as zero
  std::string name;
};

/// Element indices to check: all of [0, numel), or options.max_elements distinct-ish ones.
inline std::vector<std::int64_t> checked_elements(std::int64_t numel,
                                                  const FiniteDifferenceOptions& options) {
  std::vector<std::int64_t> elements;
  if (options.max_elements == 0 || numel <= options.max_elements) {
    for (std::int64_t i = 0; i < numel; ++i) {
      elements.push_back(i);
    }
    return elements;
  }
  std::mt19937_64 generator(options.seed);
  for (std::int64_t i = 0; i < options.max_elements; ++i) {
    elements.push_back(static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(numel)));
  }
  return elements;
}

/// Compares each claimed gradient with (value(+h) - value(-h)) / 2h. `value` reads the varied tensors afresh;
/// it is called without gradients. For parameters whose gradient lands in an accumulator.
inline ::testing::AssertionResult gradients_match_values(const std::function<double()>& value,
                                                         const std::vector<CheckedGradient>& checked,
                                                         const FiniteDifferenceOptions& options = {}) {
  const at::NoGradGuard no_grad;
  for (const CheckedGradient& item : checked) {
    if (item.variable.scalar_type() != at::kDouble || !item.variable.is_contiguous()) {
      return ::testing::AssertionFailure() << item.name << ": finite differences need contiguous f64 tensors";
    }
    const at::Tensor gradient =
        item.gradient.defined() ? item.gradient.to(at::kDouble).contiguous() : at::zeros_like(item.variable);
    if (gradient.sizes() != item.variable.sizes()) {
      return ::testing::AssertionFailure() << item.name << ": gradient has another shape than its variable";
    }
    double* x = item.variable.data_ptr<double>();
    const double* g = gradient.data_ptr<double>();
    const double largest = gradient.numel() > 0 ? gradient.abs().max().item<double>() : 0.0;
    for (const std::int64_t i : checked_elements(item.variable.numel(), options)) {
      const double kept = x[i];
      x[i] = kept + options.step;
      const double above = value();
      x[i] = kept - options.step;
      const double below = value();
      x[i] = kept;
      const double numeric = (above - below) / (2.0 * options.step);
      const double allowed = options.absolute + options.tolerance * std::max(largest, std::abs(numeric));
      if (!(std::abs(numeric - g[i]) <= allowed)) {
        return ::testing::AssertionFailure()
               << item.name << " element " << i << ": gradient " << g[i] << ", finite difference " << numeric
               << " (allowed difference " << allowed << ")";
      }
    }
  }
  return ::testing::AssertionSuccess();
}

/// Compares autograd's gradients of scalar `function` at f64 `inputs` with central differences. An input that
/// is not of type f64 is passed through and not checked.
inline ::testing::AssertionResult gradients_match(
    const std::function<at::Tensor(const std::vector<at::Tensor>&)>& function,
    const std::vector<at::Tensor>& inputs, const FiniteDifferenceOptions& options = {}) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) {
    const bool varied = input.defined() && input.scalar_type() == at::kDouble;
    leaves.push_back(varied ? input.detach().clone(at::MemoryFormat::Contiguous).requires_grad_() : input);
  }
  function(leaves).backward();
  std::vector<CheckedGradient> checked;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    if (leaves[i].defined() && leaves[i].scalar_type() == at::kDouble) {
      checked.push_back({leaves[i].detach(), leaves[i].grad(), "input " + std::to_string(i)});
    }
  }
  return gradients_match_values([&] { return function(leaves).item<double>(); }, checked, options);
}

/// EXPECTs equal shapes and max |actual - expected| <= rel_of_max * max |expected| (NaN fails).
inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double rel_of_max,
                         std::string_view what) {
  const at::NoGradGuard no_grad;
  ASSERT_TRUE(actual.defined() && expected.defined()) << what << ": a tensor is undefined";
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what << ": shapes differ";
  if (actual.numel() == 0) {
    return;
  }
  const at::Tensor a = actual.to(at::kDouble);
  const at::Tensor b = expected.to(at::kDouble);
  const double difference = (a - b).abs().max().item<double>();
  const double largest = b.abs().max().item<double>();
  EXPECT_TRUE(difference <= rel_of_max * largest)
      << what << ": largest difference " << difference << ", largest value " << largest << ", allowed ratio "
      << rel_of_max;
}

/// A random tensor that depends on `seed` alone (normal, f64 unless asked otherwise).
inline at::Tensor random_tensor(at::IntArrayRef shape, std::uint64_t seed,
                                at::ScalarType dtype = at::kDouble) {
  at::Tensor out = at::empty(shape, at::kDouble);
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  double* values = out.data_ptr<double>();
  for (std::int64_t i = 0; i < out.numel(); ++i) {
    values[i] = normal(generator);
  }
  return out.to(dtype);
}

}  // namespace athanor::tests
