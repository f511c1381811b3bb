// The student's loss against a teacher, one row of logits for each team.
#pragma once

#include "kernels/bodies/cross_entropy.hpp"
#include "kernels/bodies/divergence.hpp"

namespace athanor::kernels::bodies {

/// Sums that are made in one pass.
template <typename A>
struct FourSums {
  A a, b, c, d;
};
template <typename A>
ATHANOR_BODY FourSums<A> add_sums(const FourSums<A>& x, const FourSums<A>& y) {
  return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d};
}
ATHANOR_TEAM_BODY
template <typename A, typename Team, typename F>
ATHANOR_BODY FourSums<A> team_sums(const Team& team, std::int64_t n, const F& f) {
  return team.reduce(n, FourSums<A>{A(0), A(0), A(0), A(0)}, f,
                     [](const FourSums<A>& x, const FourSums<A>& y) { return add_sums(x, y); });
}

template <typename T>
struct DenseStatisticsRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* student;
  const A* teacher;
  const std::int64_t* labels;
  const std::uint8_t* flags;
  const A* inverse_t;
  std::int64_t vocab;
  Divergence loss;
  DenseStatistics<A>* statistics;

  /// student_sum_1, student_sum, teacher_sum and cross of a divergence between distributions.
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY FourSums<A> both(const Team& team, const T* z, const A* u, A student_base, A teacher_base,
                                A t) const {
    return team_sums<A>(team, vocab, [&](std::int64_t i) {
      const A zi = load(z[i]), ui = u[i];
      const A es = exponential(zi, student_base, t, A(1)), et = exponential(ui, teacher_base, t, A(1));
      const A cross = loss == Divergence::forward_kl   ? cross_term(et, ui, zi, t)
                      : loss == Divergence::reverse_kl ? cross_term(es, zi, ui, t)
                                                       : A(0);
      return FourSums<A>{t == A(1) ? es : exponential(zi, student_base, A(1), A(1)), es, et, cross};
    });
  }

  /// student_sum_1, -, the number of columns and the sum of squares.
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY FourSums<A> squares(const Team& team, const T* z, const A* u, A student_base) const {
    return team_sums<A>(team, vocab, [&](std::int64_t i) {
      const A zi = load(z[i]), ui = u[i];
      const bool padded = is_padded(zi, ui);
      return FourSums<A>{exponential(zi, student_base, A(1), A(1)), A(0), padded ? A(0) : A(1),
                         padded ? A(0) : (ui - zi) * (ui - zi)};
    });
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    DenseStatistics<A> row{};
    row.student_max = row.teacher_max = minus_infinity<A>();
    if (flags[r] != 0) {
      const T* z = student + r * vocab;
      row.student_max = row_maximum<A>(team, z, vocab);
      row.target = labels[r] >= 0 && labels[r] < vocab ? A(load(z[labels[r]])) : A(0);
      const A base = finite_base(row.student_max);
      FourSums<A> sums{A(0), A(0), A(0), A(0)};
      if ((flags[r] & row_has_teacher) == 0) {
        sums.a = row_sum_exp<A>(team, z, vocab, base, A(1));
      } else if (loss == Divergence::logit_mse) {
        sums = squares(team, z, teacher + r * vocab, base);
      } else {
        row.teacher_max = row_maximum<A>(team, teacher + r * vocab, vocab);
        sums = both(team, z, teacher + r * vocab, base, finite_base(row.teacher_max), inverse_t[r]);
      }
      row.student_sum_1 = sums.a;
      row.student_sum = sums.b;
      row.teacher_sum = sums.c;
      row.cross = sums.d;
    }
    team.once([&] { statistics[r] = row; });
  }
};

/// p, q and log(p/q) of one column.
template <typename A>
struct Probabilities {
  A p, q, log_ratio;
  ATHANOR_BODY static Probabilities of(A z, A u, const DenseRow<A>& row) {
    return {exponential(u, row.teacher_max, row.inverse_t, row.inverse_teacher_sum),
            exponential(z, row.student_max, row.inverse_t, row.inverse_sum),
            (u - z) * row.inverse_t - row.lse_difference};
  }
};

template <typename T>
struct DivergenceSumsRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  const T* student;
  const A* teacher;
  const std::uint8_t* flags;
  const DenseRow<A>* rows_of;
  std::int64_t vocab;
  Divergence loss;
  A parameter;
  DivergenceSums<A>* sums;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    const DenseRow<A> row = rows_of[r];
    const bool has_teacher = (flags[r] & row_has_teacher) != 0;
    const FourSums<A> total = team_sums<A>(team, has_teacher ? vocab : 0, [&](std::int64_t i) {
      const auto at = Probabilities<A>::of(load(student[r * vocab + i]), teacher[r * vocab + i], row);
      const DivergenceTerm<A> term = divergence_term(loss, at.p, at.q, at.log_ratio, parameter);
      return FourSums<A>{term.value, at.q * term.slope, A(0), A(0)};
    });
    team.once([&] { sums[r] = DivergenceSums<A>{total.a, total.b}; });
  }
};

/// d CE of one column, without the label's -1.
template <typename A>
ATHANOR_BODY A label_gradient(A z, const DenseRow<A>& row) {
  return exponential(z, row.student_max, A(1), row.inverse_sum_1) * row.ce;
}

/// The gradient of one column with a teacher, without the label's -1.
template <typename A>
ATHANOR_BODY A dense_gradient(Divergence loss, A z, A u, const DenseRow<A>& row, A parameter) {
  if (loss == Divergence::logit_mse) {
    return label_gradient(z, row) + (is_padded(z, u) ? A(0) : row.kd * (z - u));
  }
  const auto at = Probabilities<A>::of(z, u, row);
  const A label = row.inverse_t == A(1) ? at.q * row.ce : label_gradient(z, row);
  if (loss == Divergence::forward_kl) {
    return label + row.kd * (at.q - at.p);
  }
  const A slope = divergence_term(loss, at.p, at.q, at.log_ratio, parameter).slope;
  return label + row.kd * at.q * (slope - row.mean_slope);
}

template <typename T>
struct DenseBackwardRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  T* student;
  const A* teacher;
  const std::int64_t* labels;
  const std::uint8_t* flags;
  const DenseRow<A>* rows_of;
  std::int64_t vocab;
  Divergence loss;
  A parameter;

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    T* z = student + r * vocab;
    const DenseRow<A> row = rows_of[r];
    const bool has_teacher = (flags[r] & row_has_teacher) != 0 && row.kd != A(0);
    const bool has_label = (flags[r] & row_has_label) != 0 && row.ce != A(0);
    const std::int64_t label = has_label ? labels[r] : -1;
    team.for_each(vocab, [&](std::int64_t i) {
      A gradient = 0;
      if (has_teacher) {
        gradient = dense_gradient(loss, A(load(z[i])), teacher[r * vocab + i], row, parameter);
      } else if (has_label) {
        gradient = label_gradient(A(load(z[i])), row);
      }
      // The label's probability stays in the accumulation type until 1 is subtracted.
      z[i] = store<T>(i == label ? gradient - row.ce : gradient);
    });
  }
};

/// Takes the ids' logits out of a row, so that what is left is the outside, and puts them back.
template <typename T>
struct OutsideOfIds {
  using A = accumulation_t<T>;
  SparseTeacher<A> teacher;
  std::int64_t first_entry;
  std::int64_t vocab;
  T* kept;  ///< memory that the team shares

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void take_out(const Team& team, T* z) const {
    const T nothing = store<T>(minus_infinity<A>());
    team.sync();
    team.for_each(teacher.num_ids, [&](std::int64_t k) {
      const std::int64_t i = local_index(teacher, first_entry + k, vocab);
      kept[k] = i >= 0 ? z[i] : nothing;
      if (i >= 0) {
        z[i] = nothing;
      }
    });
    team.sync();
  }
  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void put_back(const Team& team, T* z) const {
    team.sync();
    team.for_each(teacher.num_ids, [&](std::int64_t k) {
      const std::int64_t i = local_index(teacher, first_entry + k, vocab);
      if (i >= 0) {
        z[i] = kept[k];
      }
    });
  }
};

/// Row r's teacher: without ids if the row has none.
template <typename T>
ATHANOR_BODY OutsideOfIds<T> outside_of(SparseTeacher<accumulation_t<T>> teacher, std::uint8_t flags,
                                        std::int64_t r, std::int64_t vocab, void* kept) {
  const std::int64_t first_entry = r * teacher.num_ids;
  teacher.num_ids = (flags & row_has_teacher) != 0 ? teacher.num_ids : 0;
  return {teacher, first_entry, vocab, static_cast<T*>(kept)};
}

template <typename T>
struct SparseStatisticsRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  T* student;
  SparseTeacher<A> teacher;
  const std::int64_t* labels;
  const std::uint8_t* flags;
  const A* inverse_t;
  std::int64_t vocab;
  SparseStatistics<A>* statistics;

  std::size_t scratch_bytes() const { return static_cast<std::size_t>(teacher.num_ids) * sizeof(T); }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void add_ids(const Team& team, const OutsideOfIds<T>& ids, A base, A t,
                            SparseStatistics<A>& row) const {
    const FourSums<A> sums = team_sums<A>(team, ids.teacher.num_ids, [&](std::int64_t k) {
      const std::int64_t entry = ids.first_entry + k;
      if (local_index(ids.teacher, entry, vocab) < 0) {
        return FourSums<A>{A(0), A(0), A(0), A(0)};
      }
      const A zk = load(ids.kept[k]), weight = ids.teacher.weight_K[entry];
      return FourSums<A>{fast_exp(zk - base), fast_exp((zk - base) * t),
                         weight == A(0) ? A(0) : weight * (ids.teacher.level_K[entry] - zk * t), A(0)};
    });
    row.sum_1 += sums.a;
    row.sum_in = sums.b;
    row.dot = sums.c;
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    SparseStatistics<A> row{};
    row.max = row.max_out = minus_infinity<A>();
    if (flags[r] != 0) {
      T* z = student + r * vocab;
      const A t = inverse_t[r];
      row.target = labels[r] >= 0 && labels[r] < vocab ? A(load(z[labels[r]])) : A(0);
      const OutsideOfIds<T> ids = outside_of<T>(teacher, flags[r], r, vocab, team.scratch());
      ids.take_out(team, z);
      row.max_out = row_maximum<A>(team, z, vocab);
      const A max_in = row_maximum<A>(team, ids.kept, ids.teacher.num_ids);
      row.max = max_in > row.max_out ? max_in : row.max_out;
      const A base = finite_base(row.max), base_out = finite_base(row.max_out);
      const FourSums<A> outside = team_sums<A>(team, vocab, [&](std::int64_t i) {
        const A zi = load(z[i]);
        return FourSums<A>{fast_exp(zi - base), fast_exp((zi - base_out) * t), A(0), A(0)};
      });
      row.sum_1 = outside.a;
      row.sum_out = outside.b;
      add_ids(team, ids, base, t, row);
      ids.put_back(team, z);
    }
    team.once([&] { statistics[r] = row; });
  }
};

template <typename T>
struct SparseBackwardRow {
  using A = accumulation_t<T>;
  static constexpr int lanes = block_lanes;
  T* student;
  SparseTeacher<A> teacher;
  const std::int64_t* labels;
  const std::uint8_t* flags;
  const SparseRow<A>* rows_of;
  std::int64_t vocab;

  std::size_t scratch_bytes() const { return static_cast<std::size_t>(teacher.num_ids) * sizeof(T); }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void gradient(const Team& team, T* z, const OutsideOfIds<T>& ids, const SparseRow<A>& row,
                             std::int64_t label) const {
    const SparseOutside<A> outside = SparseOutside<A>::of(row);
    ids.take_out(team, z);
    // An id's own column is 0 here and written below.
    team.for_each(vocab, [&](std::int64_t i) {
      const A value = outside.at(A(load(z[i])));
      z[i] = store<T>(i == label ? value - row.ce : value);
    });
    team.sync();
    team.for_each(ids.teacher.num_ids, [&](std::int64_t k) {
      const std::int64_t entry = ids.first_entry + k, i = local_index(ids.teacher, entry, vocab);
      if (i >= 0) {
        const A value = gradient_at_id(A(load(ids.kept[k])), ids.teacher.weight_K[entry], row);
        z[i] = store<T>(i == label ? value - row.ce : value);
      }
    });
  }

  ATHANOR_TEAM_BODY
  template <typename Team>
  ATHANOR_BODY void operator()(const Team& team, std::int64_t r) const {
    T* z = student + r * vocab;
    const SparseRow<A> row = rows_of[r];
    if (row.ce == A(0) && row.kd == A(0)) {
      team.for_each(vocab, [&](std::int64_t i) { z[i] = store<T>(A(0)); });
      return;
    }
    const std::int64_t label = (flags[r] & row_has_label) != 0 ? labels[r] : -1;
    gradient(team, z, outside_of<T>(teacher, flags[r], r, vocab, team.scratch()), row, label);
  }
};

}  // namespace athanor::kernels::bodies
