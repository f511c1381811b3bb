// Root-mean-square normalisation, one row for each team.
#pragma once

#include "kernels/bodies/team.hpp"

namespace athanor::kernels::bodies {

/// x over the root of the mean square, as the compute type would keep it.
template <typename T, typename A>
ATHANOR_BODY A normalised(T x, A rstd) {
  return round_through<T>(load(x) * rstd);
}

template <typename T>
struct RmsNormRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* x;
  const T* weight;
  std::int64_t width;
  A eps;
  T* y;
  A* rstd;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const T* in = x + r * width;
    const A squares =
        team_sum<A>(team, width, [&](std::int64_t c) { return A(load(in[c])) * A(load(in[c])); });
    const A inverse = A(1) / std::sqrt(squares / static_cast<A>(width) + eps);
    team.for_each(width, [&](std::int64_t c) {
      y[r * width + c] = store<T>(load(weight[c]) * normalised(in[c], inverse));
    });
    team.once([&] { rstd[r] = inverse; });
  }
};

/// dx of one element: `weighted` is dy * weight and `projection` the mean of that times x, over the square of
/// the root mean square.
template <typename T, typename A>
ATHANOR_BODY A norm_gradient(A weighted, T x, A rstd, A projection) {
  return rstd * (weighted - load(x) * projection);
}

template <typename T>
struct RmsNormBackwardRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* dy;
  const T* x;
  const T* weight;
  const A* rstd;
  std::int64_t width;
  T* dx;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const T* g = dy + r * width;
    const T* in = x + r * width;
    const A sum = team_sum<A>(
        team, width, [&](std::int64_t c) { return A(load(g[c])) * A(load(weight[c])) * A(load(in[c])); });
    const A projection = sum * rstd[r] * rstd[r] / static_cast<A>(width);
    team.for_each(width, [&](std::int64_t c) {
      dx[r * width + c] =
          store<T>(norm_gradient(A(load(g[c])) * A(load(weight[c])), in[c], rstd[r], projection));
    });
  }
};

/// Terms of column c of dweight: dy * normalised x of each row.
template <typename T>
struct RmsNormWeightColumn {
  using Sum = accumulation_t<T>;
  const T* dy;
  const T* x;
  const Sum* rstd;
  std::int64_t width;

  ATHANOR_BODY Sum term(std::int64_t r, std::int64_t c) const {
    return Sum(load(dy[r * width + c])) * normalised(x[r * width + c], rstd[r]);
  }
};

}  // namespace athanor::kernels::bodies
