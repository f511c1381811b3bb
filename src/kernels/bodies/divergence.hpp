// Divergences between a teacher's and a student's distribution, element by element.
#pragma once

#include "kernels/bodies/elements.hpp"
#include "kernels/distillation.hpp"

namespace athanor::kernels::bodies {

/// As a function of d = log(p/q): the term of the value and the derivative g by q.
template <typename A>
struct DivergenceTerm {
  A value;
  A slope;
};

// Beyond this |log(p/q)| the smaller probability's term is below rounding whatever the other factor. NaN (a
// column that is padded on both sides) becomes finite, so that its probabilities of 0 make its terms 0
// without a branch.
template <typename A>
ATHANOR_BODY A clamped_log_ratio(A d) {
  constexpr A limit = sizeof(A) == 4 ? A(80) : A(600);
  const A above = d > -limit ? d : -limit;
  return above < limit ? above : limit;
}

struct SkewKl {
  template <typename A>
  ATHANOR_BODY static DivergenceTerm<A> term(A p, A /*q*/, A d, A skew) {
    const A x = (A(1) - skew) * fast_expm1(-clamped_log_ratio(d));  // r/p - 1
    return {-p * fast_log1p(x), -(A(1) - skew) / (A(1) + x)};
  }
};

struct SkewReverseKl {
  template <typename A>
  ATHANOR_BODY static DivergenceTerm<A> term(A /*p*/, A q, A d, A skew) {
    const A x = (A(1) - skew) * fast_expm1(clamped_log_ratio(d));  // r/q - 1
    const A log_ratio = -fast_log1p(x);
    return {q * log_ratio, log_ratio + A(1) - skew / (A(1) + x)};
  }
};

struct Jsd {
  template <typename A>
  ATHANOR_BODY static DivergenceTerm<A> term(A p, A q, A log_ratio, A beta) {
    const A d = clamped_log_ratio(log_ratio);
    const A log_q = -fast_log1p(beta * fast_expm1(d)) / beta;                     // log(q/M) / beta
    const A log_p = -fast_log1p((A(1) - beta) * fast_expm1(-d)) / (A(1) - beta);  // log(p/M) / (1 - beta)
    return {p * log_p + q * log_q, log_q};
  }
};

struct ReverseKl {
  template <typename A>
  ATHANOR_BODY static DivergenceTerm<A> term(A /*p*/, A q, A d, A /*parameter*/) {
    const A bounded = q == A(0) ? A(0) : d;  // a padded column has no ratio
    return {-q * bounded, -bounded};
  }
};

/// The term of a divergence that is one of p, q and d.
template <typename A>
ATHANOR_BODY DivergenceTerm<A> divergence_term(Divergence loss, A p, A q, A d, A parameter) {
  switch (loss) {
    case Divergence::skew_kl:
      return SkewKl::term(p, q, d, parameter);
    case Divergence::skew_reverse_kl:
      return SkewReverseKl::term(p, q, d, parameter);
    case Divergence::jsd:
      return Jsd::term(p, q, d, parameter);
    default:
      return ReverseKl::term(p, q, d, parameter);
  }
}

/// factor * e^((x - base) / t)
template <typename A>
ATHANOR_BODY A exponential(A x, A base, A inverse_t, A factor) {
  return fast_exp((x - base) * inverse_t) * factor;
}

/// weight (x - y) / t; a padded column, -infinity on both sides, has weight 0.
template <typename A>
ATHANOR_BODY A cross_term(A weight, A x, A y, A inverse_t) {
  const A term = weight * ((x - y) * inverse_t);
  return weight == A(0) ? A(0) : term;
}

/// Whether a column is padded on both sides.
template <typename A>
ATHANOR_BODY bool is_padded(A z, A u) {
  constexpr A lowest = std::numeric_limits<A>::lowest();
  return z < lowest && u < lowest;
}

/// ce e^(z - max) + kd e^((z - base) / t)
template <typename A>
ATHANOR_BODY A outside_gradient(A z, A ce, A max, A kd, A base, A inverse_t) {
  return ce * fast_exp(z - max) + kd * fast_exp((z - base) * inverse_t);
}

/// The gradient outside the ids of a sparse teacher, without the label's -1. Relative to the outside's own
/// maximum nothing overflows, however small q_out is.
template <typename A>
struct SparseOutside {
  A base;
  A max;
  A inverse_t;
  A ce;  ///< at temperature 1 it is in kd
  A kd;
  bool is_unit_t;

  ATHANOR_BODY static SparseOutside of(const SparseRow<A>& row) {
    const A base = finite_base(row.max_out);
    const A tail = row.tail == A(0) ? A(0) : row.tail * fast_exp(base * row.inverse_t - row.lse_out);
    const A kd = row.kd * (row.weight * fast_exp(base * row.inverse_t - row.lse) - tail);
    if (row.inverse_t == A(1)) {
      return {base, row.max, A(1), A(0), kd + row.ce * fast_exp(base - row.max) * row.inverse_sum_1, true};
    }
    return {base, row.max, row.inverse_t, row.ce * row.inverse_sum_1, kd, false};
  }
  /// At temperature 1.
  ATHANOR_BODY A at_unit_t(A z) const { return kd * fast_exp(z - base); }
  ATHANOR_BODY A at_any_t(A z) const { return outside_gradient(z, ce, max, kd, base, inverse_t); }
  ATHANOR_BODY A at(A z) const { return is_unit_t ? at_unit_t(z) : at_any_t(z); }
};

/// The gradient at one of the ids, without the label's -1.
template <typename A>
ATHANOR_BODY A gradient_at_id(A z, A weight, const SparseRow<A>& row) {
  return row.ce * fast_exp(z - row.max) * row.inverse_sum_1 +
         row.kd * (row.weight * fast_exp(z * row.inverse_t - row.lse) - weight);
}

/// Index of an id in this slice, -1 when it is not here.
template <typename A>
ATHANOR_BODY std::int64_t local_index(const SparseTeacher<A>& teacher, std::int64_t entry,
                                      std::int64_t vocab) {
  const std::int64_t index = static_cast<std::int64_t>(teacher.ids_K[entry]) - teacher.first_id;
  return teacher.ids_K[entry] >= 0 && index >= 0 && index < vocab ? index : -1;
}

}  // namespace athanor::kernels::bodies
