// Rotary positions of one head for each team, alone and behind a norm of the head.
#pragma once

#include "kernels/bodies/norm.hpp"
#include "kernels/rotary.hpp"

namespace athanor::kernels::bodies {

/// Columns i and i + C/2 of a head.
template <typename A>
struct HeadPair {
  A first;
  A second;
};

/// Turned by the angle whose cosine and sine these are; by its negative with -sin.
template <typename A>
ATHANOR_BODY HeadPair<A> rotated(A first, A second, A cos, A sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}
/// Turned back: the adjoint of rotated().
template <typename A>
ATHANOR_BODY HeadPair<A> rotated_back(A first, A second, A cos, A sin) {
  return {first * cos + second * sin, second * cos - first * sin};
}

/// Where head `index` = token * heads + head lies.
struct HeadPlace {
  std::int64_t in;     ///< in the array with a token stride
  std::int64_t out;    ///< in the dense one
  std::int64_t angle;  ///< in cos and sin
  ATHANOR_BODY static HeadPlace of(const HeadsShape& shape, std::int64_t index) {
    const std::int64_t token = index / shape.heads, head = index - token * shape.heads;
    return {token * shape.token_stride + head * shape.head_dim, index * shape.head_dim,
            token * (shape.head_dim / 2)};
  }
};

template <typename T>
struct RotaryHead {
  using A = accumulation_t<T>;
  static constexpr int lanes = warp_lanes;
  const T* x;
  const A* cos;
  const A* sin;
  HeadsShape shape;
  A sign;  ///< -1: the inverse
  T* y;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const HeadPlace at = HeadPlace::of(shape, index);
    const std::int64_t half = shape.head_dim / 2;
    team.for_each(half, [&](std::int64_t i) {
      // y may be x: both are read before they are written.
      const auto turned = rotated<A>(load(x[at.in + i]), load(x[at.in + i + half]), cos[at.angle + i],
                                     sign * sin[at.angle + i]);
      y[at.out + i] = store<T>(turned.first);
      y[at.out + i + half] = store<T>(turned.second);
    });
  }
};

/// An element behind the head's norm and weight, before it is turned.
template <typename T, typename A>
ATHANOR_BODY A weighted_head_element(T x, T weight, A rstd) {
  return round_through<T>(load(weight) * normalised(x, rstd));
}

template <typename T>
struct HeadNormRotary {
  using A = accumulation_t<T>;
  static constexpr int lanes = warp_lanes;
  const T* x;
  const T* weight;
  const A* cos;
  const A* sin;
  HeadsShape shape;
  A eps;
  T* y;
  A* rstd;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const HeadPlace at = HeadPlace::of(shape, index);
    const std::int64_t half = shape.head_dim / 2;
    const T* in = x + at.in;
    const A squares =
        team_sum<A>(team, shape.head_dim, [&](std::int64_t i) { return A(load(in[i])) * A(load(in[i])); });
    const A inverse = A(1) / std::sqrt(squares / static_cast<A>(shape.head_dim) + eps);
    team.for_each(half, [&](std::int64_t i) {
      const auto turned = rotated<A>(weighted_head_element(in[i], weight[i], inverse),
                                     weighted_head_element(in[i + half], weight[i + half], inverse),
                                     cos[at.angle + i], sin[at.angle + i]);
      y[at.out + i] = store<T>(turned.first);
      y[at.out + i + half] = store<T>(turned.second);
    });
    team.once([&] { rstd[index] = inverse; });
  }
};

template <typename T>
struct HeadNormRotaryBackward {
  using A = accumulation_t<T>;
  static constexpr int lanes = warp_lanes;
  const T* dy;
  const T* x;
  const T* weight;
  const A* cos;
  const A* sin;
  const A* rstd;
  HeadsShape shape;
  T* dx;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t index) const {
    const HeadPlace at = HeadPlace::of(shape, index);
    const std::int64_t half = shape.head_dim / 2;
    const T* in = x + at.in;
    const auto turned_back = [&](std::int64_t i) {
      return rotated_back<A>(load(dy[at.out + i]), load(dy[at.out + i + half]), cos[at.angle + i],
                             sin[at.angle + i]);
    };
    const A sum = team_sum<A>(team, half, [&](std::int64_t i) {
      const auto g = turned_back(i);
      return g.first * A(load(weight[i])) * A(load(in[i])) +
             g.second * A(load(weight[i + half])) * A(load(in[i + half]));
    });
    const A inverse = rstd[index];
    const A projection = sum * inverse * inverse / static_cast<A>(shape.head_dim);
    team.for_each(half, [&](std::int64_t i) {
      const auto g = turned_back(i);
      dx[at.in + i] = store<T>(norm_gradient(g.first * A(load(weight[i])), in[i], inverse, projection));
      dx[at.in + i + half] =
          store<T>(norm_gradient(g.second * A(load(weight[i + half])), in[i + half], inverse, projection));
    });
  }
};

/// Terms of column c of dweight: one for each head of each token.
template <typename T>
struct HeadNormWeightColumn {
  using Sum = accumulation_t<T>;
  const T* dy;
  const T* x;
  const Sum* cos;
  const Sum* sin;
  const Sum* rstd;
  HeadsShape shape;

  ATHANOR_BODY Sum term(std::int64_t index, std::int64_t c) const {
    const HeadPlace at = HeadPlace::of(shape, index);
    const std::int64_t half = shape.head_dim / 2, i = c < half ? c : c - half;
    const auto g = rotated_back<Sum>(load(dy[at.out + i]), load(dy[at.out + i + half]), cos[at.angle + i],
                                     sin[at.angle + i]);
    return (c < half ? g.first : g.second) * normalised(x[at.in + c], rstd[index]);
  }
};

}  // namespace athanor::kernels::bodies
