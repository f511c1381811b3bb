// Numbers with ids in descending order, equal ones by ascending id.
#pragma once

#include "kernels/bodies/team.hpp"

namespace athanor::kernels::bodies {

template <typename A>
struct Candidate {
  A value;
  std::int64_t id;  ///< -1: nothing, which is behind everything
};

/// NaN counts as -infinity.
template <typename A>
ATHANOR_BODY A comparable(A value) {
  return value != value ? minus_infinity<A>() : value;
}

template <typename A>
ATHANOR_BODY bool comes_before(const Candidate<A>& a, const Candidate<A>& b) {
  if (a.id < 0 || b.id < 0) {
    return a.id >= 0;
  }
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

template <typename A>
ATHANOR_BODY Candidate<A> first_of(const Candidate<A>& a, const Candidate<A>& b) {
  return comes_before(b, a) ? b : a;
}

/// Of the candidates f(i), i in [0, n), the first that comes after `last` (any, if `last` is nothing).
ATHANOR_TEAM_BODY
template <typename A, typename Team, typename F>
ATHANOR_BODY Candidate<A> next_after(const Team& team, std::int64_t n, const Candidate<A>& last, const F& f) {
  return team.reduce(
      n, Candidate<A>{A(0), -1},
      [&](std::int64_t i) {
        const Candidate<A> candidate = f(i);
        return last.id < 0 || comes_before(last, candidate) ? candidate : Candidate<A>{A(0), -1};
      },
      [](const Candidate<A>& a, const Candidate<A>& b) { return first_of(a, b); });
}

}  // namespace athanor::kernels::bodies
