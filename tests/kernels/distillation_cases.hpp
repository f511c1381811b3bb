// Rows with every kind of flag, label and temperature for the tests of the distillation kernels' twins.
#pragma once

#include "kernels/bodies/distillation.hpp"
#include "kernels/twin_cases.hpp"

namespace athanor::tests {

inline constexpr std::array<kernels::Divergence, 6> all_divergences = {
    kernels::Divergence::forward_kl,      kernels::Divergence::reverse_kl, kernels::Divergence::skew_kl,
    kernels::Divergence::skew_reverse_kl, kernels::Divergence::jsd,        kernels::Divergence::logit_mse};

/// A chunk of rows against a dense teacher. The numbers that come from merged statistics are plausible ones.
template <typename T>
struct DenseCase {
  using A = kernels::accumulation_t<T>;
  std::int64_t rows, vocab;
  std::vector<T> student;
  std::vector<A> teacher;
  std::vector<std::int64_t> labels;
  std::vector<std::uint8_t> flags;
  std::vector<A> inverse_t;

  DenseCase(std::int64_t num_rows, std::int64_t num_ids)
      : rows(num_rows),
        vocab(num_ids),
        student(random_values<T>(num_rows * num_ids, 1, 3.0)),
        teacher(random_values<A>(num_rows * num_ids, 2, 3.0)),
        labels(example_labels(num_rows, num_ids)) {
    for (std::int64_t r = 0; r < rows; ++r) {
      flags.push_back(static_cast<std::uint8_t>(r % 4));  // nothing, label, teacher, both
      inverse_t.push_back(r % 3 == 0 ? A(1) : A(0.4));
      if (vocab > 3) {  // padded on both sides
        student[static_cast<std::size_t>(r * vocab + 2)] =
            static_cast<T>(-std::numeric_limits<float>::infinity());
        teacher[static_cast<std::size_t>(r * vocab + 2)] = -std::numeric_limits<A>::infinity();
      }
    }
  }

  /// As if this slice were the whole vocabulary.
  std::vector<kernels::DenseRow<A>> merged(const std::vector<kernels::DenseStatistics<A>>& statistics,
                                           kernels::Divergence loss) const {
    std::vector<kernels::DenseRow<A>> out;
    for (std::size_t r = 0; r < statistics.size(); ++r) {
      const auto& s = statistics[r];
      kernels::DenseRow<A> row{};
      row.inverse_t = inverse_t[r];
      row.student_max = s.student_max;
      row.teacher_max = s.teacher_max;
      row.inverse_sum_1 = A(1) / s.student_sum_1;
      row.inverse_sum = A(1) / s.student_sum;
      row.inverse_teacher_sum = A(1) / s.teacher_sum;
      row.lse_difference =
          (s.teacher_max - s.student_max) * row.inverse_t + std::log(s.teacher_sum) - std::log(s.student_sum);
      row.mean_slope = A(0.125);
      row.ce = (flags[r] & kernels::row_has_label) != 0 ? A(0.5) : A(0);
      row.kd = (flags[r] & kernels::row_has_teacher) != 0 ? A(0.25) : A(0);
      if (loss == kernels::Divergence::logit_mse && s.teacher_sum > A(0)) {
        row.kd /= s.teacher_sum;
      }
      out.push_back(row);
    }
    return out;
  }
};

/// A chunk of rows against a teacher that names some ids, in and outside of the slice.
template <typename T>
struct SparseCase : DenseCase<T> {
  using A = kernels::accumulation_t<T>;
  static constexpr std::int64_t top_k = 5;
  static constexpr std::int64_t first_id = 1000;
  std::vector<std::int32_t> ids;
  std::vector<A> weight, level;

  SparseCase(std::int64_t num_rows, std::int64_t num_ids)
      : DenseCase<T>(num_rows, num_ids),
        weight(random_values<A>(num_rows * top_k, 3)),
        level(random_values<A>(num_rows * top_k, 4)) {
    for (std::int64_t r = 0; r < num_rows; ++r) {
      for (std::int64_t k = 0; k < top_k; ++k) {
        const std::int64_t id = first_id - 1 + k * (num_ids / 4 + 1);  // the first is another slice's
        ids.push_back(k == 3 && r % 2 == 1 ? -1 : static_cast<std::int32_t>(id));
      }
    }
    for (A& w : weight) {
      w = std::abs(w);
    }
    weight[2 % weight.size()] = A(0);
  }

  kernels::SparseTeacher<A> sparse_teacher() const {
    return {ids.data(), weight.data(), level.data(), top_k, first_id};
  }
  std::vector<kernels::SparseRow<A>> merged(
      const std::vector<kernels::SparseStatistics<A>>& statistics) const {
    std::vector<kernels::SparseRow<A>> out;
    for (std::size_t r = 0; r < statistics.size(); ++r) {
      const auto& s = statistics[r];
      const A t = this->inverse_t[r];
      kernels::SparseRow<A> row{};
      row.inverse_t = t;
      row.max = s.max;
      row.inverse_sum_1 = A(1) / s.sum_1;
      row.max_out = s.max_out;
      const A outside = s.sum_out * std::exp((s.max_out - s.max) * t);
      row.lse = s.max * t + std::log(s.sum_in + outside);
      row.lse_out = s.max_out * t + std::log(s.sum_out);
      row.weight = A(1);
      row.tail = r % 2 == 0 ? A(0.25) : A(0);
      row.ce = (this->flags[r] & kernels::row_has_label) != 0 ? A(0.5) : A(0);
      row.kd = (this->flags[r] & kernels::row_has_teacher) != 0 ? A(0.25) : A(0);
      out.push_back(row);
    }
    return out;
  }
};

/// A vector of structs of A as its numbers.
template <typename A, typename S>
std::vector<A> numbers_of(const std::vector<S>& structs) {
  const A* first = reinterpret_cast<const A*>(structs.data());
  return std::vector<A>(first, first + structs.size() * (sizeof(S) / sizeof(A)));
}

}  // namespace athanor::tests
