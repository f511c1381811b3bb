#include "infer/sampler.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "base/error.hpp"

namespace athanor::infer {
namespace {

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

double log_sum_exp(std::span<const double> values) {
  const double largest = *std::max_element(values.begin(), values.end());
  double sum = 0.0;
  for (double value : values) {
    sum += std::exp(value - largest);
  }
  return largest + std::log(sum);
}

std::int64_t argmax(std::span<const double> values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// Inverse of the cumulative distribution in token order; `uniform` in [0, 1).
std::int64_t draw(std::span<const double> logits, double uniform) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0.0;
  for (double value : logits) {
    total += std::exp(value - largest);
  }
  double left = uniform * total;
  std::int64_t last_possible = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(logits[i] - largest);
    if (weight > 0.0) {
      last_possible = static_cast<std::int64_t>(i);
      if (left < weight) {
        return last_possible;
      }
    }
    left -= weight;
  }
  return last_possible;  // rounding left a remainder beyond the last token
}

}  // namespace

std::vector<double> logits_row(const at::Tensor& logits_V) {
  ATHANOR_CHECK(logits_V.dim() == 1 && logits_V.numel() > 0,
                "a row of logits has {} dimensions and {} elements", logits_V.dim(), logits_V.numel());
  const at::Tensor row = logits_V.to(at::kCPU, at::kDouble).contiguous();
  const double* data = row.const_data_ptr<double>();
  std::vector<double> values(data, data + row.numel());
  for (double value : values) {
    if (std::isnan(value) || value == std::numeric_limits<double>::infinity()) {
      throw base::NumericError(
          "the model's logits are not finite (a bad checkpoint, or fp16 overflow) use another "
          "checkpoint or precision.compute");
    }
  }
  return values;
}

std::vector<double> log_softmax(std::span<const double> logits_V) {
  const double normaliser = log_sum_exp(logits_V);
  std::vector<double> out(logits_V.begin(), logits_V.end());
  for (double& value : out) {
    value -= normaliser;
  }
  return out;
}

void apply_repetition_penalty(std::span<double> logits_V, std::span<const std::int64_t> history,
                              double penalty) {
  if (penalty == 1.0) {
    return;
  }
  std::unordered_set<std::int64_t> seen;
  for (std::int64_t token : history) {
    if (seen.insert(token).second) {
      double& value = logits_V[static_cast<std::size_t>(token)];
      value = value < 0.0 ? value * penalty : value / penalty;
    }
  }
}

void keep_top_k(std::span<double> logits_V, std::int64_t k) {
  if (k <= 0 || k >= static_cast<std::int64_t>(logits_V.size())) {
    return;
  }
  std::vector<double> sorted(logits_V.begin(), logits_V.end());
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const double threshold = sorted[static_cast<std::size_t>(k - 1)];
  for (double& value : logits_V) {
    if (value < threshold) {
      value = minus_infinity;
    }
  }
}

void keep_top_p(std::span<double> logits_V, double p) {
  if (p >= 1.0) {
    return;
  }
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < logits_V.size(); ++i) {
    if (logits_V[i] > minus_infinity) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits_V[a] > logits_V[b]; });
  const double normaliser = log_sum_exp(logits_V);
  double more_likely = 0.0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    double& value = logits_V[order[i]];
    const double probability = std::exp(value - normaliser);
    if (i > 0 && more_likely >= p) {
      value = minus_infinity;
    }
    more_likely += probability;
  }
}

Sampler::Sampler(const SamplerOptions& options)
    : options_(options), random_(options.seed, base::RandomPurpose::generation, "sampler") {
  options_.validate();
}

SampledToken Sampler::sample(std::span<const double> logits_V, std::span<const std::int64_t> history,
                             std::uint64_t request, std::uint64_t position) const {
  std::vector<double> shaped(logits_V.begin(), logits_V.end());
  apply_repetition_penalty(shaped, history, options_.repetition_penalty);
  SampledToken out;
  if (options_.temperature == 0.0) {
    out.token = argmax(shaped);
  } else {
    for (double& value : shaped) {
      value /= options_.temperature;
    }
    keep_top_k(shaped, options_.top_k);
    keep_top_p(shaped, options_.top_p);
    out.token = draw(shaped, random_.uniform(request, position));
  }
  out.log_probability = logits_V[static_cast<std::size_t>(out.token)] - log_sum_exp(logits_V);
  return out;
}

}  // namespace athanor::infer
