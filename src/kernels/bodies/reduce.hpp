// Sums and checks over flat ranges: some parts of the range first, one for each team, then the parts.
#pragma once

#include "kernels/bodies/part.hpp"
#include "kernels/bodies/team.hpp"
#include "kernels/reduce.hpp"

namespace athanor::kernels::bodies {

template <typename T>
struct SquaresOfPart {
  static constexpr int lanes = block_lanes;
  const T* x;
  std::int64_t n;
  std::int64_t part_size;
  double* partial;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t part) const {
    const Part range = Part::of(n, part, part_size);
    const double sum = team_sum<double>(team, range.count, [&](std::int64_t i) {
      const auto value = static_cast<double>(load(x[range.first + i]));
      return value * value;
    });
    team.once([&] { partial[part] = sum; });
  }
};

struct SumOfParts {
  static constexpr int lanes = block_lanes;
  const double* partial;
  double* out;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t /*row*/) const {
    const double sum = team_sum<double>(team, reduce_parts, [&](std::int64_t i) { return partial[i]; });
    team.once([&] { *out = sum; });
  }
};

/// Writes 1 where an element is NaN or infinite, and nothing where all are finite.
template <typename T>
struct NonfiniteElement {
  const T* x;
  std::int32_t* found;

  ATHANOR_BODY void operator()(std::int64_t i) const {
    const auto value = load(x[i]);
    // x - x is 0 for finite x and NaN otherwise. All who write write the same.
    if (value - value != 0) {
      *found = 1;
    }
  }
};

}  // namespace athanor::kernels::bodies
