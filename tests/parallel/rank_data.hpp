// Deterministic tensors that every rank can compute for every other rank.
#pragma once

#include <cmath>
#include <vector>

#include <ATen/ATen.h>

namespace athanor::tests {

/// Values of `rank` for the given shape: different for each rank and of different magnitude, so that the
/// order of additions shows in the last bits.
inline at::Tensor rank_values(int rank, std::vector<std::int64_t> shape, at::ScalarType type = at::kFloat,
                              int salt = 0) {
  std::int64_t numel = 1;
  for (const std::int64_t extent : shape) {
    numel *= extent;
  }
  const at::Tensor base = at::arange(numel, at::kDouble) * 0.7351 + 1.7 * rank + 0.31 * salt;
  return (base.sin() * std::pow(10.0, rank % 3)).to(type).view(shape);
}

/// Rows that rank `from` has for rank `to`: uneven, some zero.
inline std::int64_t uneven_rows(int from, int to) {
  return (from * 5 + to * 3 + 1) % 4;
}

}  // namespace athanor::tests
