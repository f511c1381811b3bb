// The GEMM limit of a training step (design section 9): the time that the step's matrix products alone take.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/transformer_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::train {

/// One product of the step, as measured.
struct GemmProduct {
  std::string name;            ///< e.g. "expert gate_up, weight gradient"
  std::string shape;           ///< "m x k x n" and how many of them in one step of this rank
  std::string implementation;  ///< the fastest: "mm", "bmm", "grouped_mm" or "own"
  double seconds = 0.0;        ///< of all its calls in one step
  double gflops = 0.0;         ///< 10^9 floating-point operations a second
};

/// What the limit is computed for: one rank's work in one step.
struct GemmLimitOptions {
  model::TransformerConfig model;
  at::ScalarType compute = at::kFloat;
  std::int64_t global_tokens = 0;  ///< T: tokens of the whole step
  std::int64_t seq = 0;
  int repeats = 5;  ///< the median of them counts
};

/// Measures the products q, kv, o, router, expert gate_up and down (T*k/E rows each) and dense ffn of each
/// layer and the head once, each as forward, data gradient and weight gradient, and attention's core as 3
/// times one forward.
class GemmLimit {
 public:
  /// Allocates inputs and outputs and chooses the fastest implementation of each product. Collective over the
  /// role.
  GemmLimit(const GemmLimitOptions& options, const parallel::ProcessGrid& grid);
  ~GemmLimit();
  GemmLimit(const GemmLimit&) = delete;
  GemmLimit& operator=(const GemmLimit&) = delete;

  /// Seconds of all products of one step: the slowest rank's sum of medians, all ranks working at once.
  /// Collective.
  double measure();
  /// As of the last measure(), on this rank.
  const std::vector<GemmProduct>& products() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::train
