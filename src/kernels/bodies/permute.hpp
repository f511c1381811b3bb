// Moving rows, one row for each team.
#pragma once

#include "kernels/bodies/team.hpp"

namespace athanor::kernels::bodies {

/// out[i] = x[source_row[i]], in units of `Unit`: as many bytes as rows and addresses are multiples of.
template <typename Unit>
struct PermuteRow {
  static constexpr int lanes = block_lanes;
  const Unit* x;
  const std::int64_t* source_row;
  std::int64_t width;  ///< units of a row
  Unit* out;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t i) const {
    const Unit* from = x + source_row[i] * width;
    Unit* to = out + i * width;
    team.for_each(width, [&](std::int64_t c) { to[c] = from[c]; });
  }
};

/// sum + gate * x: how every choice enters its token's sum.
template <typename A, typename T>
ATHANOR_BODY A add_weighted(A sum, A gate, T x) {
  return sum + gate * load(x);
}

/// Row t of combine_rows().
template <typename T>
struct CombineRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* x;
  const std::int64_t* slot;
  const A* gates;
  std::int64_t choices;
  std::int64_t width;
  T* y;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t t) const {
    const std::int64_t first = t * choices;
    team.for_each(width, [&](std::int64_t c) {
      A sum = 0;
      for (std::int64_t j = first; j < first + choices; ++j) {
        if (slot[j] >= 0) {
          sum = add_weighted(sum, gates == nullptr ? A(1) : gates[j], x[slot[j] * width + c]);
        }
      }
      y[t * width + c] = store<T>(sum);
    });
  }
};

/// Choice j (of all tokens') of combine_rows_backward().
template <typename T>
struct CombineRowBackward {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* dy;
  const T* x;
  const std::int64_t* slot;
  const A* gates;
  std::int64_t choices;
  std::int64_t width;
  T* dx;
  A* dgates;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t j) const {
    const T* dy_row = dy + j / choices * width;
    const std::int64_t to = slot[j];
    if (to >= 0) {
      const A gate = gates == nullptr ? A(1) : gates[j];
      team.for_each(width, [&](std::int64_t c) { dx[to * width + c] = store<T>(gate * load(dy_row[c])); });
    }
    if (dgates != nullptr) {
      const A product = team_sum<A>(team, to < 0 ? 0 : width, [&](std::int64_t c) {
        return A(load(dy_row[c])) * A(load(x[to * width + c]));
      });
      team.once([&] { dgates[j] = product; });
    }
  }
};

/// Owners that add_rows() divides the destination rows among: row r belongs to owner r mod this.
inline constexpr std::int64_t add_rows_owners = 1024;

/// Owner `index` of add_rows(): goes over all rows in order and adds those that are its own, so that one row
/// that is named twice gets its terms in ascending order without atomics.
template <typename T>
struct AddOwnedRows {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* x;
  const std::int64_t* row;
  std::int64_t rows;
  std::int64_t width;
  A* out;

  /// Row numbers of the next `lanes` rows, so that each is read from memory once.
  static constexpr std::size_t scratch_bytes() { return sizeof(std::int64_t) * lanes; }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t owner) const {
    auto* next = static_cast<std::int64_t*>(team.scratch());
    for (std::int64_t first = 0; first < rows; first += lanes) {
      const std::int64_t count = rows - first < lanes ? rows - first : lanes;
      team.sync();
      team.for_each(count, [&](std::int64_t i) { next[i] = row[first + i]; });
      team.sync();
      for (std::int64_t i = 0; i < count; ++i) {
        if (next[i] >= 0 && next[i] % add_rows_owners == owner) {
          const T* from = x + (first + i) * width;
          A* to = out + next[i] * width;
          // A column belongs to one lane, so its terms come in order without a sync.
          team.for_each(width, [&](std::int64_t c) { to[c] = add_weighted(to[c], A(1), from[c]); });
        }
      }
    }
  }
};

}  // namespace athanor::kernels::bodies
