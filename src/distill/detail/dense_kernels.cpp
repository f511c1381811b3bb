#include "distill/detail/dense_kernels.hpp"

#include <limits>

#include "distill/detail/row_math.hpp"

#define ATHANOR_LANE_BODY __attribute__((always_inline))

namespace athanor::distill::detail {
namespace {

using kernels::bodies::cross_term;
using kernels::bodies::DivergenceTerm;
using kernels::bodies::is_padded;
using kernels::bodies::Jsd;
using kernels::bodies::ReverseKl;
using kernels::bodies::SkewKl;
using kernels::bodies::SkewReverseKl;

/// Probabilities of a tile, and log(p/q).
template <typename A>
struct Probabilities {
  A p[tile];
  A q[tile];
  A log_ratio[tile];

  template <typename T>
  ATHANOR_KERNEL_INLINE void fill(const T* z, const A* u, const DenseRow<A>& row, int n) {
    exponentials(u, row.teacher_max, row.inverse_t, row.inverse_teacher_sum, n, p);
    exponentials(z, row.student_max, row.inverse_t, row.inverse_sum, n, q);
    const A inverse_t = row.inverse_t, difference = row.lse_difference;
    for (int i = 0; i < n; ++i) {
      log_ratio[i] = (u[i] - A(load(z[i]))) * inverse_t - difference;
    }
  }
};

struct Statistics {
  /// terms[i] = weight[i] (x[i] - y[i]) / t
  template <typename X, typename Y, typename A>
  ATHANOR_KERNEL_INLINE static void cross_terms(const A* weight, const X* x, const Y* y, A inverse_t, int n,
                                                A* terms) {
    for (int i = 0; i < n; ++i) {
      terms[i] = cross_term(weight[i], A(load(x[i])), A(load(y[i])), inverse_t);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void both(const T* z, const A* u, A inverse_t, std::int64_t n, KdLoss loss,
                                         DenseStatistics<A>& row) {
    row.teacher_max = kernels::cpu::row_maximum<A>(u, n);
    const A student_base = finite_base(row.student_max), teacher_base = finite_base(row.teacher_max);
    const bool is_unit_t = inverse_t == A(1);
    LaneSum<A> sum_1, student, teacher, cross;
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      const T* zt = z + first;
      const A* ut = u + first;
      A es[tile], et[tile], terms[tile];
      exponentials(zt, student_base, inverse_t, A(1), count, es);
      exponentials(ut, teacher_base, inverse_t, A(1), count, et);
      add_lanes(student, es, count);
      add_lanes(teacher, et, count);
      if (loss == KdLoss::forward_kl) {
        cross_terms(et, ut, zt, inverse_t, count, terms);
        add_lanes(cross, terms, count);
      } else if (loss == KdLoss::reverse_kl) {
        cross_terms(es, zt, ut, inverse_t, count, terms);
        add_lanes(cross, terms, count);
      }
      if (!is_unit_t) {
        exponentials(zt, student_base, A(1), A(1), count, terms);
        add_lanes(sum_1, terms, count);
      }
    });
    row.student_sum = student.total();
    row.student_sum_1 = is_unit_t ? row.student_sum : sum_1.total();
    row.teacher_sum = teacher.total();
    row.cross = cross.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void student_only(const T* z, std::int64_t n, DenseStatistics<A>& row) {
    const A base = finite_base(row.student_max);
    LaneSum<A> sum;
    for_each_lane(
        n, [&](std::int64_t i, int j) ATHANOR_LANE_BODY { sum.lane[j] += fast_exp(load(z[i]) - base); });
    row.student_sum_1 = sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void squares(const T* z, const A* u, std::int64_t n, DenseStatistics<A>& row) {
    LaneSum<A> count, sum;
    for_each_lane(n, [&](std::int64_t i, int j) ATHANOR_LANE_BODY {
      const A zi = load(z[i]), ui = u[i];
      const bool padded = is_padded(zi, ui);
      const A square = (ui - zi) * (ui - zi);
      count.lane[j] += padded ? A(0) : A(1);
      sum.lane[j] += padded ? A(0) : square;
    });
    row.teacher_sum = count.total();
    row.cross = sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* student, const A* teacher, const std::int64_t* labels,
                                        const std::uint8_t* flags, const A* inverse_t, std::int64_t rows,
                                        std::int64_t vocab, KdLoss loss, DenseStatistics<A>* statistics) {
    for (std::int64_t r = 0; r < rows; ++r) {
      DenseStatistics<A> row{};
      row.student_max = row.teacher_max = -std::numeric_limits<A>::infinity();
      if (flags[r] != 0) {
        const T* z = student + r * vocab;
        row.student_max = kernels::cpu::row_maximum<A>(z, vocab);
        row.target = labels[r] >= 0 && labels[r] < vocab ? A(load(z[labels[r]])) : A(0);
        if ((flags[r] & row_has_teacher) == 0) {
          student_only(z, vocab, row);
        } else if (loss == KdLoss::logit_mse) {
          student_only(z, vocab, row);
          squares(z, teacher + r * vocab, vocab, row);
        } else {
          both(z, teacher + r * vocab, inverse_t[r], vocab, loss, row);
        }
      }
      statistics[r] = row;
    }
  }
};

struct Sums {
  template <typename Divergence, typename T, typename A>
  ATHANOR_KERNEL_INLINE static DivergenceSums<A> row_sums(const T* z, const A* u, const DenseRow<A>& row,
                                                          std::int64_t n, A parameter) {
    LaneSum<A> value, slope;
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      Probabilities<A> at;
      A values[tile], slopes[tile];
      at.fill(z + first, u + first, row, count);
      for (int i = 0; i < count; ++i) {
        const DivergenceTerm<A> term =
            Divergence::template term<A>(at.p[i], at.q[i], at.log_ratio[i], parameter);
        values[i] = term.value;
        slopes[i] = at.q[i] * term.slope;
      }
      add_lanes(value, values, count);
      add_lanes(slope, slopes, count);
    });
    return {value.total(), slope.total()};
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* student, const A* teacher, const std::uint8_t* flags,
                                        const DenseRow<A>* rows_of, std::int64_t rows, std::int64_t vocab,
                                        KdLoss loss, A parameter, DivergenceSums<A>* sums) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* z = student + r * vocab;
      const A* u = teacher + r * vocab;
      if ((flags[r] & row_has_teacher) == 0) {
        sums[r] = {A(0), A(0)};
      } else if (loss == KdLoss::jsd) {
        sums[r] = row_sums<Jsd>(z, u, rows_of[r], vocab, parameter);
      } else if (loss == KdLoss::skew_kl) {
        sums[r] = row_sums<SkewKl>(z, u, rows_of[r], vocab, parameter);
      } else {
        sums[r] = row_sums<SkewReverseKl>(z, u, rows_of[r], vocab, parameter);
      }
    }
  }
};

struct Backward {
  /// d CE of a tile, without the label's -1.
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void label_part(const T* z, const DenseRow<A>& row, int n, A* result) {
    exponentials(z, row.student_max, A(1), row.inverse_sum_1, n, result);
    scale(result, row.ce, n, result);
  }

  /// The same where the student's probabilities q at the row's temperature are known.
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void label_part(const T* z, const A* q, const DenseRow<A>& row, int n,
                                               A* result) {
    if (row.inverse_t == A(1)) {
      scale(q, row.ce, n, result);
    } else {
      label_part(z, row, n, result);
    }
  }

  template <typename A>
  ATHANOR_KERNEL_INLINE static void scale(const A* x, A factor, int n, A* result) {
    for (int i = 0; i < n; ++i) {
      result[i] = x[i] * factor;
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void add_and_store(const A* a, const A* b, int n, T* result) {
    for (int i = 0; i < n; ++i) {
      result[i] = store<T>(a[i] + b[i]);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void forward_kl(T* z, const A* u, const DenseRow<A>& row, std::int64_t n) {
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      A p[tile], q[tile], labels[tile];
      exponentials(u + first, row.teacher_max, row.inverse_t, row.inverse_teacher_sum, count, p);
      exponentials(z + first, row.student_max, row.inverse_t, row.inverse_sum, count, q);
      label_part(z + first, q, row, count, labels);
      const A weight = row.kd;
      for (int i = 0; i < count; ++i) {
        q[i] = weight * (q[i] - p[i]);
      }
      add_and_store(labels, q, count, z + first);
    });
  }

  template <typename Divergence, typename T, typename A>
  ATHANOR_KERNEL_INLINE static void divergence(T* z, const A* u, const DenseRow<A>& row, std::int64_t n,
                                               A parameter) {
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      Probabilities<A> at;
      A labels[tile], slopes[tile];
      at.fill(z + first, u + first, row, count);
      label_part(z + first, at.q, row, count, labels);
      const A weight = row.kd, mean_slope = row.mean_slope;
      for (int i = 0; i < count; ++i) {
        slopes[i] = Divergence::template term<A>(at.p[i], at.q[i], at.log_ratio[i], parameter).slope;
      }
      for (int i = 0; i < count; ++i) {
        slopes[i] = weight * at.q[i] * (slopes[i] - mean_slope);
      }
      add_and_store(labels, slopes, count, z + first);
    });
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void squares(T* z, const A* u, const DenseRow<A>& row, std::int64_t n) {
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      const T* zt = z + first;
      const A* ut = u + first;
      A labels[tile], slopes[tile];
      label_part(zt, row, count, labels);
      const A weight = row.kd;
      for (int i = 0; i < count; ++i) {
        const A zi = load(zt[i]);
        const A slope = weight * (zi - ut[i]);
        slopes[i] = is_padded(zi, ut[i]) ? A(0) : slope;
      }
      add_and_store(labels, slopes, count, z + first);
    });
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void labels_only(T* z, const DenseRow<A>& row, std::int64_t n) {
    for_each_tile(n, [&](std::int64_t first, int count) ATHANOR_LANE_BODY {
      A labels[tile];
      label_part(z + first, row, count, labels);
      for (int i = 0; i < count; ++i) {
        z[first + i] = store<T>(labels[i]);
      }
    });
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void with_teacher(T* z, const A* u, const DenseRow<A>& row, std::int64_t n,
                                                 KdLoss loss, A parameter) {
    switch (loss) {
      case KdLoss::forward_kl:
        return forward_kl(z, u, row, n);
      case KdLoss::reverse_kl:
        return divergence<ReverseKl>(z, u, row, n, parameter);
      case KdLoss::skew_kl:
        return divergence<SkewKl>(z, u, row, n, parameter);
      case KdLoss::skew_reverse_kl:
        return divergence<SkewReverseKl>(z, u, row, n, parameter);
      case KdLoss::jsd:
        return divergence<Jsd>(z, u, row, n, parameter);
      case KdLoss::logit_mse:
        return squares(z, u, row, n);
    }
  }

  /// d at element `i` alone, from the logit that was there, minus the factor of CE: the label's probability
  /// stays in the accumulation type until 1 is subtracted.
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void at_label(T* z, const A* u, const DenseRow<A>& row, T logit, KdLoss loss,
                                             A parameter, bool has_teacher) {
    A value[1] = {A(load(logit))};
    if (has_teacher) {
      with_teacher(value, u, row, 1, loss, parameter);
    } else {
      labels_only(value, row, 1);
    }
    *z = store<T>(value[0] - row.ce);
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(T* student, const A* teacher, const std::int64_t* labels,
                                        const std::uint8_t* flags, const DenseRow<A>* rows_of,
                                        std::int64_t rows, std::int64_t vocab, KdLoss loss, A parameter) {
    for (std::int64_t r = 0; r < rows; ++r) {
      T* z = student + r * vocab;
      const DenseRow<A>& row = rows_of[r];
      const bool has_teacher = (flags[r] & row_has_teacher) != 0 && row.kd != A(0);
      const bool has_label = (flags[r] & row_has_label) != 0 && row.ce != A(0);
      const A* u = has_teacher ? teacher + r * vocab : nullptr;
      const bool here = has_label && labels[r] >= 0 && labels[r] < vocab;
      const T label_logit = here ? z[labels[r]] : T(0);
      if (has_teacher) {
        with_teacher(z, u, row, vocab, loss, parameter);
      } else if (has_label) {
        labels_only(z, row, vocab);
      } else {
        for (std::int64_t i = 0; i < vocab; ++i) {
          z[i] = store<T>(A(0));
        }
      }
      if (here) {
        at_label(z + labels[r], has_teacher ? u + labels[r] : nullptr, row, label_logit, loss, parameter,
                 has_teacher);
      }
    }
  }
};

}  // namespace

template <typename T>
void dense_statistics(const T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                      const std::uint8_t* flags, const accumulation_t<T>* inverse_t, std::int64_t rows,
                      std::int64_t vocab, KdLoss loss, DenseStatistics<accumulation_t<T>>* statistics) {
  kernels::cpu::dispatch<Statistics>(student, teacher, labels, flags, inverse_t, rows, vocab, loss,
                                     statistics);
}

template <typename T>
void divergence_sums(const T* student, const accumulation_t<T>* teacher, const std::uint8_t* flags,
                     const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows, std::int64_t vocab,
                     KdLoss loss, accumulation_t<T> parameter, DivergenceSums<accumulation_t<T>>* sums) {
  kernels::cpu::dispatch<Sums>(student, teacher, flags, rows_of, rows, vocab, loss, parameter, sums);
}

template <typename T>
void dense_backward(T* student, const accumulation_t<T>* teacher, const std::int64_t* labels,
                    const std::uint8_t* flags, const DenseRow<accumulation_t<T>>* rows_of, std::int64_t rows,
                    std::int64_t vocab, KdLoss loss, accumulation_t<T> parameter) {
  kernels::cpu::dispatch<Backward>(student, teacher, labels, flags, rows_of, rows, vocab, loss, parameter);
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void dense_statistics<T>(const T*, const accumulation_t<T>*, const std::int64_t*,               \
                                    const std::uint8_t*, const accumulation_t<T>*, std::int64_t,           \
                                    std::int64_t, KdLoss, DenseStatistics<accumulation_t<T>>*);            \
  template void divergence_sums<T>(const T*, const accumulation_t<T>*, const std::uint8_t*,                \
                                   const DenseRow<accumulation_t<T>>*, std::int64_t, std::int64_t, KdLoss, \
                                   accumulation_t<T>, DivergenceSums<accumulation_t<T>>*);                 \
  template void dense_backward<T>(T*, const accumulation_t<T>*, const std::int64_t*, const std::uint8_t*,  \
                                  const DenseRow<accumulation_t<T>>*, std::int64_t, std::int64_t, KdLoss,  \
                                  accumulation_t<T>);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::distill::detail
