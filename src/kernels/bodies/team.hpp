// Lanes that work on one row together, and what they can do: go over its elements, add, find the largest.
//
// A row's body is written once against a team. On the device the lanes are the threads of a warp or block
// (cuda/device_team.cuh); HostTeam runs them one after another. In both, element i belongs to lane i mod
// `lanes`, a lane adds its elements in ascending order, and the lanes' results are combined by one fixed
// tree: lane j takes in lane j + lanes/2, then j + lanes/4, and so on. So a sum has the same bits on the host
// and on the device, in every run and for every grid; nothing is added by atomics but integers.
//
// Every lane of a team must make the same calls. A result of reduce() and the like is known to all lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/bodies/elements.hpp"

namespace athanor::kernels::bodies {

/// The lanes of a team that shares a long row (a block) and a short one (a warp).
inline constexpr int block_lanes = 256;
inline constexpr int warp_lanes = 32;

template <int Lanes>
class HostTeam {
 public:
  static constexpr int lanes = Lanes;
  explicit HostTeam(std::size_t scratch_bytes = 0)
      : scratch_((scratch_bytes + sizeof(double) - 1) / sizeof(double)) {}

  /// f(i) for every i of [0, n); what one call writes another may read only after sync().
  template <typename F>
  void for_each(std::int64_t n, const F& f) const {
    for (std::int64_t i = 0; i < n; ++i) {
      f(i);
    }
  }
  /// f() by one lane.
  template <typename F>
  void once(const F& f) const {
    f();
  }
  void sync() const {}
  /// identity and f(i) of all i in [0, n) under combine(a, b), in the order above.
  template <typename V, typename F, typename Combine>
  V reduce(std::int64_t n, V identity, const F& f, const Combine& combine) const {
    V lane[Lanes];
    for (V& value : lane) {
      value = identity;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      lane[i % Lanes] = combine(lane[i % Lanes], f(i));
    }
    for (int step = Lanes / 2; step > 0; step /= 2) {
      for (int j = 0; j < step; ++j) {
        lane[j] = combine(lane[j], lane[j + step]);
      }
    }
    return lane[0];
  }
  /// Each lane's own part of reduce(): out[lane], of `lanes` values, which may be read after sync().
  template <typename V, typename F, typename Combine>
  void fold_lanes(std::int64_t n, V identity, const F& f, const Combine& combine, V* out) const {
    for (int j = 0; j < Lanes; ++j) {
      out[j] = identity;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      out[i % Lanes] = combine(out[i % Lanes], f(i));
    }
  }
  /// *counter += value by one lane, whatever other teams add to it.
  void count(std::int64_t* counter, std::int64_t value) const { *counter += value; }
  /// *counter += 1 by the calling lane; returns what was there. `counter` is in the scratch memory.
  std::uint32_t take(std::uint32_t* counter) const { return (*counter)++; }
  /// Memory of this team alone, of the size its body asked for, aligned for f64.
  void* scratch() const { return const_cast<double*>(scratch_.data()); }

 private:
  std::vector<double> scratch_;
};

/// Sum of f(i) over [0, n).
ATHANOR_TEAM_BODY
template <typename V, typename Team, typename F>
ATHANOR_BODY V team_sum(const Team& team, std::int64_t n, const F& f) {
  return team.reduce(n, V(0), f, [](V a, V b) { return a + b; });
}

/// Largest f(i) over [0, n), `lowest` of none; NaN are passed over.
ATHANOR_TEAM_BODY
template <typename V, typename Team, typename F>
ATHANOR_BODY V team_maximum(const Team& team, std::int64_t n, V lowest, const F& f) {
  return team.reduce(n, lowest, f, [](V a, V b) { return b > a ? b : a; });
}

/// Bytes of scratch memory that a row's body asks for.
template <typename Body>
std::size_t scratch_bytes_of(const Body& body) {
  if constexpr (requires { body.scratch_bytes(); }) {
    return body.scratch_bytes();
  }
  static_cast<void>(body);
  return 0;
}

/// Calls body(team, row) for every row: the host's form of cuda::launch_rows().
template <typename Body>
void run_rows(const Body& body, std::int64_t rows) {
  const HostTeam<Body::lanes> team(scratch_bytes_of(body));
  for (std::int64_t row = 0; row < rows; ++row) {
    body(team, row);
  }
}

/// Calls body(i) for every element: the host's form of cuda::launch_elements().
template <typename Body>
void run_elements(const Body& body, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    body(i);
  }
}

}  // namespace athanor::kernels::bodies
