// SwiGLU of one element.
#pragma once

#include "kernels/bodies/team.hpp"

namespace athanor::kernels::bodies {

/// silu(gate) * up
template <typename A>
ATHANOR_BODY A swiglu(A gate, A up) {
  return gate / (1 + fast_exp(-gate)) * up;
}

template <typename A>
struct SwigluGradient {
  A gate;
  A up;
};
/// From d, the gradient of silu(gate) * up.
template <typename A>
ATHANOR_BODY SwigluGradient<A> swiglu_gradient(A d, A gate, A up) {
  const A sigmoid = 1 / (1 + fast_exp(-gate));
  return {d * up * sigmoid * (1 + gate * (1 - sigmoid)), d * gate * sigmoid};
}

template <typename T>
struct SwigluRow {
  static constexpr int lanes = block_lanes;
  const T* gate_up;
  std::int64_t ffn;
  T* y;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const T* row = gate_up + 2 * r * ffn;
    team.for_each(
        ffn, [&](std::int64_t c) { y[r * ffn + c] = store<T>(swiglu(load(row[c]), load(row[ffn + c]))); });
  }
};

template <typename T>
struct SwigluBackwardRow {
  static constexpr int lanes = block_lanes;
  const T* dy;
  const T* gate_up;
  std::int64_t ffn;
  T* dgate_up;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const T* row = gate_up + 2 * r * ffn;
    T* out = dgate_up + 2 * r * ffn;
    team.for_each(ffn, [&](std::int64_t c) {
      const auto gradient = swiglu_gradient(load(dy[r * ffn + c]), load(row[c]), load(row[ffn + c]));
      out[c] = store<T>(gradient.gate);
      out[ffn + c] = store<T>(gradient.up);
    });
  }
};

}  // namespace athanor::kernels::bodies
