#include "distill/detail/sparse_kernels.hpp"

#include <limits>

#include "distill/detail/row_math.hpp"

#define ATHANOR_LANE_BODY __attribute__((always_inline))

namespace athanor::distill::detail {
namespace {

using kernels::bodies::gradient_at_id;
using kernels::bodies::local_index;
using kernels::bodies::outside_gradient;
using kernels::bodies::SparseOutside;

/// Takes the ids' logits out of a row, so that what is left is the outside, and puts them back.
template <typename T, typename A>
struct OutsideOfIds {
  ATHANOR_KERNEL_INLINE static void take_out(T* z, const SparseTeacher<A>& teacher, std::int64_t first_entry,
                                             std::int64_t vocab, T* kept) {
    const T nothing = store<T>(-std::numeric_limits<A>::infinity());
    for (std::int64_t k = 0; k < teacher.num_ids; ++k) {
      const std::int64_t i = local_index(teacher, first_entry + k, vocab);
      kept[k] = i >= 0 ? z[i] : nothing;
      if (i >= 0) {
        z[i] = nothing;
      }
    }
  }
  ATHANOR_KERNEL_INLINE static void put_back(T* z, const SparseTeacher<A>& teacher, std::int64_t first_entry,
                                             std::int64_t vocab, const T* kept) {
    for (std::int64_t k = 0; k < teacher.num_ids; ++k) {
      const std::int64_t i = local_index(teacher, first_entry + k, vocab);
      if (i >= 0) {
        z[i] = kept[k];
      }
    }
  }
};

struct Statistics {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void outside(const T* z, A inverse_t, std::int64_t n, A base_1, A& sum_1,
                                            SparseStatistics<A>& row) {
    const A base = finite_base(row.max_out);
    LaneSum<A> total_1, total;
    if (inverse_t == A(1)) {
      for_each_lane(n, [&](std::int64_t i, int j)
                           ATHANOR_LANE_BODY { total.lane[j] += fast_exp(A(load(z[i])) - base); });
      row.sum_out = total.total();
      sum_1 = row.sum_out * fast_exp(base - base_1);
      return;
    }
    for_each_lane(n, [&](std::int64_t i, int j) ATHANOR_LANE_BODY {
      const A zi = load(z[i]);
      total.lane[j] += fast_exp((zi - base) * inverse_t);
      total_1.lane[j] += fast_exp(zi - base_1);
    });
    row.sum_out = total.total();
    sum_1 = total_1.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void one_row(T* z, const SparseTeacher<A>& teacher, std::int64_t first_entry,
                                            A inverse_t, std::int64_t vocab, T* kept,
                                            SparseStatistics<A>& row) {
    OutsideOfIds<T, A>::take_out(z, teacher, first_entry, vocab, kept);
    row.max_out = kernels::cpu::row_maximum<A>(z, vocab);
    const A max_in = kernels::cpu::row_maximum<A>(kept, teacher.num_ids);
    row.max = max_in > row.max_out ? max_in : row.max_out;
    const A base = finite_base(row.max);
    outside(z, inverse_t, vocab, base, row.sum_1, row);
    for (std::int64_t k = 0; k < teacher.num_ids; ++k) {
      if (local_index(teacher, first_entry + k, vocab) >= 0) {
        const A zk = load(kept[k]);
        row.sum_1 += fast_exp(zk - base);
        row.sum_in += fast_exp((zk - base) * inverse_t);
        const A weight = teacher.weight_K[first_entry + k];
        row.dot += weight == A(0) ? A(0) : weight * (teacher.level_K[first_entry + k] - zk * inverse_t);
      }
    }
    OutsideOfIds<T, A>::put_back(z, teacher, first_entry, vocab, kept);
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(T* student, SparseTeacher<A> teacher, const std::int64_t* labels,
                                        const std::uint8_t* flags, const A* inverse_t, std::int64_t rows,
                                        std::int64_t vocab, T* kept, SparseStatistics<A>* statistics) {
    for (std::int64_t r = 0; r < rows; ++r) {
      SparseStatistics<A> row{};
      row.max = row.max_out = -std::numeric_limits<A>::infinity();
      if (flags[r] != 0) {
        T* z = student + r * vocab;
        row.target = labels[r] >= 0 && labels[r] < vocab ? A(load(z[labels[r]])) : A(0);
        SparseTeacher<A> known = teacher;
        known.num_ids = (flags[r] & row_has_teacher) != 0 ? teacher.num_ids : 0;
        one_row(z, known, r * teacher.num_ids, inverse_t[r], vocab, kept, row);
      }
      statistics[r] = row;
    }
  }
};

struct Backward {
  /// Everything outside the ids, without the label's -1.
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void outside(T* z, const SparseRow<A>& row, std::int64_t n) {
    const auto at = SparseOutside<A>::of(row);
    if (at.is_unit_t) {
      for (std::int64_t i = 0; i < n; ++i) {
        z[i] = store<T>(at.at_unit_t(A(load(z[i]))));
      }
      return;
    }
    const A ce = at.ce, kd = at.kd, base = at.base;
    for (std::int64_t i = 0; i < n; ++i) {
      z[i] = store<T>(outside_gradient(A(load(z[i])), ce, row.max, kd, base, row.inverse_t));
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void one_row(T* z, const SparseTeacher<A>& teacher, std::int64_t first_entry,
                                            const SparseRow<A>& row, std::int64_t label, std::int64_t vocab,
                                            T* kept) {
    const bool here = label >= 0 && label < vocab;
    const T label_logit = here ? z[label] : T(0);
    OutsideOfIds<T, A>::take_out(z, teacher, first_entry, vocab, kept);
    outside(z, row, vocab);
    bool label_is_id = false;
    for (std::int64_t k = 0; k < teacher.num_ids; ++k) {
      const std::int64_t i = local_index(teacher, first_entry + k, vocab);
      if (i >= 0) {
        const A slope = gradient_at_id<A>(load(kept[k]), teacher.weight_K[first_entry + k], row);
        label_is_id = label_is_id || i == label;
        z[i] = store<T>(i == label ? slope - row.ce : slope);
      }
    }
    if (here && !label_is_id) {
      A value[1] = {A(load(label_logit))};
      outside(value, row, 1);
      z[label] = store<T>(value[0] - row.ce);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(T* student, SparseTeacher<A> teacher, const std::int64_t* labels,
                                        const std::uint8_t* flags, const SparseRow<A>* rows_of,
                                        std::int64_t rows, std::int64_t vocab, T* kept) {
    for (std::int64_t r = 0; r < rows; ++r) {
      T* z = student + r * vocab;
      if (rows_of[r].ce == A(0) && rows_of[r].kd == A(0)) {
        for (std::int64_t i = 0; i < vocab; ++i) {
          z[i] = store<T>(A(0));
        }
        continue;
      }
      SparseTeacher<A> known = teacher;
      known.num_ids = (flags[r] & row_has_teacher) != 0 ? teacher.num_ids : 0;
      const std::int64_t label = (flags[r] & row_has_label) != 0 ? labels[r] : -1;
      one_row(z, known, r * teacher.num_ids, rows_of[r], label, vocab, kept);
    }
  }
};

}  // namespace

template <typename T>
void sparse_statistics(T* student, const SparseTeacher<accumulation_t<T>>& teacher,
                       const std::int64_t* labels, const std::uint8_t* flags,
                       const accumulation_t<T>* inverse_t, std::int64_t rows, std::int64_t vocab, T* kept,
                       SparseStatistics<accumulation_t<T>>* statistics) {
  kernels::cpu::dispatch<Statistics>(student, teacher, labels, flags, inverse_t, rows, vocab, kept,
                                     statistics);
}

template <typename T>
void sparse_backward(T* student, const SparseTeacher<accumulation_t<T>>& teacher, const std::int64_t* labels,
                     const std::uint8_t* flags, const SparseRow<accumulation_t<T>>* rows_of,
                     std::int64_t rows, std::int64_t vocab, T* kept) {
  kernels::cpu::dispatch<Backward>(student, teacher, labels, flags, rows_of, rows, vocab, kept);
}

#define ATHANOR_INSTANTIATE(T)                                                                             \
  template void sparse_statistics<T>(T*, const SparseTeacher<accumulation_t<T>>&, const std::int64_t*,     \
                                     const std::uint8_t*, const accumulation_t<T>*, std::int64_t,          \
                                     std::int64_t, T*, SparseStatistics<accumulation_t<T>>*);              \
  template void sparse_backward<T>(T*, const SparseTeacher<accumulation_t<T>>&, const std::int64_t*,       \
                                   const std::uint8_t*, const SparseRow<accumulation_t<T>>*, std::int64_t, \
                                   std::int64_t, T*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::distill::detail
