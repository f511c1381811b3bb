// AdamW written down once more, element by element in f64, to compare with.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace athanor::optim::tests {

struct PlainAdamw {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  std::int64_t updates = 0;

  struct Moments {
    std::vector<double> first, second;
  };

  /// `updates` must count this update already.
  void update(std::vector<double>& parameter, Moments& moments, const std::vector<double>& gradient,
              double lr, double decay) const {
    moments.first.resize(parameter.size(), 0.0);
    moments.second.resize(parameter.size(), 0.0);
    const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(updates));
    const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(updates));
    for (std::size_t i = 0; i < parameter.size(); ++i) {
      parameter[i] -= lr * decay * parameter[i];
      moments.first[i] = beta1 * moments.first[i] + (1.0 - beta1) * gradient[i];
      moments.second[i] = beta2 * moments.second[i] + (1.0 - beta2) * gradient[i] * gradient[i];
      const double denominator = std::sqrt(moments.second[i] / correction2) + eps;
      parameter[i] -= lr * (moments.first[i] / correction1) / denominator;
    }
  }
};

}  // namespace athanor::optim::tests
