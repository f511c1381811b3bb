// Scores of tokens for the tests of the router's twins.
#pragma once

#include "kernels/bodies/columns.hpp"
#include "kernels/bodies/routing.hpp"
#include "kernels/twin_cases.hpp"

namespace athanor::tests {

/// Ties, NaN and infinities among the scores of some tokens.
template <typename A>
std::vector<A> example_scores(std::int64_t tokens, std::int64_t experts) {
  auto scores = random_values<A>(tokens * experts, 21);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const std::size_t token = i / static_cast<std::size_t>(experts);
    if (token % 4 == 1) {
      scores[i] = std::round(scores[i]);
    } else if (token % 4 == 2 && i % 3 == 0) {
      scores[i] = i % 2 == 0 ? std::numeric_limits<A>::quiet_NaN() : -std::numeric_limits<A>::infinity();
    }
  }
  return scores;
}

/// Rows of s' with sum 1, and the logits y whose softmax they are.
template <typename A>
struct Normalised {
  std::vector<A> y, s;
  Normalised(std::int64_t tokens, std::int64_t experts)
      : y(random_values<A>(tokens * experts, 22)), s(y.size()) {
    const auto width = static_cast<std::size_t>(experts);
    for (std::size_t first = 0; first < y.size(); first += width) {
      A sum = 0;
      for (std::size_t i = first; i < first + width; ++i) {
        s[i] = std::exp(y[i]);
        sum += s[i];
      }
      for (std::size_t i = first; i < first + width; ++i) {
        s[i] /= sum;
      }
    }
  }
};

inline std::vector<kernels::ChoiceShape> choice_shapes() {
  return {{.experts = 128, .choices = 4},
          {.experts = 128, .choices = 8, .groups = 16, .group_choices = 4},
          {.experts = 96, .choices = 6, .groups = 12, .group_choices = 12},
          {.experts = 40, .choices = 3, .groups = 5, .group_choices = 1},
          {.experts = 7, .choices = 7},
          {.experts = 3, .choices = 1}};
}

}  // namespace athanor::tests
