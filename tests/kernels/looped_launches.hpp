// Bodies for tests of the launches' loops, and launches of them with grids of a few blocks.
#pragma once

#include "device/stream_handle.hpp"
#include "kernels/bodies/columns.hpp"
#include "kernels/bodies/team.hpp"

namespace athanor::tests {

namespace bodies = kernels::bodies;

/// Rows and their sums, through scratch memory that the team's next row overwrites.
template <int Lanes>
struct ReversedRow {
  static constexpr int lanes = Lanes;
  const std::int64_t* x;
  std::int64_t width;
  double* sums;
  std::int64_t* out;

  std::size_t scratch_bytes() const { return static_cast<std::size_t>(width) * sizeof(std::int64_t); }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t row) const {
    auto* kept = static_cast<std::int64_t*>(team.scratch());
    team.for_each(width, [&](std::int64_t i) { kept[i] = x[row * width + i]; });
    team.sync();
    const double sum =
        bodies::team_sum<double>(team, width, [&](std::int64_t i) { return static_cast<double>(kept[i]); });
    const double twice = bodies::team_sum<double>(
        team, width, [&](std::int64_t i) { return 2.0 * static_cast<double>(kept[i]); });
    team.once([&] { sums[row] = twice - sum; });
    // Every lane uses its own copies of the sums.
    team.for_each(width, [&](std::int64_t i) {
      out[row * width + i] = kept[width - 1 - i] + static_cast<std::int64_t>(twice - sum - sum);
    });
  }
};

struct DoubledElement {
  const std::int64_t* x;
  std::int64_t* out;
  ATHANOR_BODY void operator()(std::int64_t i) const { out[i] = 2 * x[i]; }
};

struct ColumnOfNumbers {
  using Sum = double;
  const std::int64_t* x;
  std::int64_t columns;
  std::int64_t* out;
  ATHANOR_BODY double term(std::int64_t row, std::int64_t c) const {
    return static_cast<double>(x[row * columns + c]);
  }
  ATHANOR_BODY void finish(std::int64_t part, std::int64_t c, double sum) const {
    out[part * columns + c] = static_cast<std::int64_t>(sum);
  }
};

/// As kernels::cuda::launch_rows(), launch_elements() and launch_column_step(), in at most `most_blocks`
/// blocks.
template <int Lanes>
void launch_looped(const ReversedRow<Lanes>& body, std::int64_t rows, std::int64_t most_blocks,
                   device::StreamHandle stream);
void launch_looped(const DoubledElement& body, std::int64_t n, std::int64_t most_blocks,
                   device::StreamHandle stream);
void launch_looped(const ColumnOfNumbers& body, const bodies::ColumnShape& shape, std::int64_t most_blocks,
                   device::StreamHandle stream);

}  // namespace athanor::tests
