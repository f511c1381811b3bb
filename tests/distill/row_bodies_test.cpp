// The bodies of the CUDA twins of the loss' row kernels, run by the host's teams, against the CPU's kernels.
#include "distill/detail/dense_kernels.hpp"
#include "distill/detail/sparse_kernels.hpp"
#include "kernels/distillation_cases.hpp"

namespace athanor::distill::detail {
namespace {

using kernels::bodies::run_rows;
using tests::expect_near;
using tests::numbers_of;
using tests::unit_roundoff;
using tests::widen;

template <typename T>
class RowBodies : public ::testing::Test {};
TYPED_TEST_SUITE(RowBodies, tests::ElementTypes);

/// Numbers that are not finite on both sides become 0 on both.
template <typename A>
void expect_close(std::vector<A> actual, std::vector<A> expected, double allowed, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(expected[i])) {
      EXPECT_TRUE(tests::same_number(actual[i], expected[i])) << what << " " << i;
      actual[i] = expected[i] = A(0);
    }
  }
  expect_near(actual, widen(expected), allowed, what);
}

TYPED_TEST(RowBodies, DenseLossesMatchTheCpu) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t vocab : {0, 1, 300, 1031}) {
    for (const KdLoss loss : tests::all_divergences) {
      SCOPED_TRACE(std::to_string(vocab) + " of loss " + std::to_string(static_cast<int>(loss)));
      const tests::DenseCase<T> c(9, vocab);
      std::vector<DenseStatistics<A>> statistics(9), expected(9);
      run_rows(kernels::bodies::DenseStatisticsRow<T>{c.student.data(), c.teacher.data(), c.labels.data(),
                                                      c.flags.data(), c.inverse_t.data(), vocab, loss,
                                                      statistics.data()},
               9);
      dense_statistics(c.student.data(), c.teacher.data(), c.labels.data(), c.flags.data(),
                       c.inverse_t.data(), 9, vocab, loss, expected.data());
      expect_close(numbers_of<A>(statistics), numbers_of<A>(expected), 64 * unit_roundoff<A>(), "statistics");
      if (vocab < 2) {  // of one column every divergence is 0 up to rounding
        continue;
      }
      const auto rows_of = c.merged(expected, loss);
      const A parameter = A(0.3);
      if (loss == KdLoss::skew_kl || loss == KdLoss::skew_reverse_kl || loss == KdLoss::jsd) {
        std::vector<DivergenceSums<A>> sums(9), expected_sums(9);
        run_rows(kernels::bodies::DivergenceSumsRow<T>{c.student.data(), c.teacher.data(), c.flags.data(),
                                                       rows_of.data(), vocab, loss, parameter, sums.data()},
                 9);
        divergence_sums(c.student.data(), c.teacher.data(), c.flags.data(), rows_of.data(), 9, vocab, loss,
                        parameter, expected_sums.data());
        expect_close(numbers_of<A>(sums), numbers_of<A>(expected_sums), 64 * unit_roundoff<A>(), "sums");
      }
      auto gradient = c.student, expected_gradient = c.student;
      run_rows(kernels::bodies::DenseBackwardRow<T>{gradient.data(), c.teacher.data(), c.labels.data(),
                                                    c.flags.data(), rows_of.data(), vocab, loss, parameter},
               9);
      dense_backward(expected_gradient.data(), c.teacher.data(), c.labels.data(), c.flags.data(),
                     rows_of.data(), 9, vocab, loss, parameter);
      expect_near(gradient, widen(expected_gradient), 8 * unit_roundoff<T>(), "gradient");
    }
  }
}

TYPED_TEST(RowBodies, SparseLossesMatchTheCpu) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t vocab : {0, 1, 300, 1031}) {
    SCOPED_TRACE(vocab);
    tests::SparseCase<T> c(9, vocab);
    auto written = c.student;
    std::vector<T> kept(static_cast<std::size_t>(c.top_k));
    std::vector<SparseStatistics<A>> statistics(9), expected(9);
    run_rows(
        kernels::bodies::SparseStatisticsRow<T>{written.data(), c.sparse_teacher(), c.labels.data(),
                                                c.flags.data(), c.inverse_t.data(), vocab, statistics.data()},
        9);
    tests::expect_same(written, c.student, "restored logits");
    sparse_statistics(c.student.data(), c.sparse_teacher(), c.labels.data(), c.flags.data(),
                      c.inverse_t.data(), 9, vocab, kept.data(), expected.data());
    expect_close(numbers_of<A>(statistics), numbers_of<A>(expected), 64 * unit_roundoff<A>(), "statistics");
    if (vocab < 2) {
      continue;
    }
    const auto rows_of = c.merged(expected);
    run_rows(kernels::bodies::SparseBackwardRow<T>{written.data(), c.sparse_teacher(), c.labels.data(),
                                                   c.flags.data(), rows_of.data(), vocab},
             9);
    sparse_backward(c.student.data(), c.sparse_teacher(), c.labels.data(), c.flags.data(), rows_of.data(), 9,
                    vocab, kept.data());
    expect_near(written, widen(c.student), 8 * unit_roundoff<T>(), "gradient");
  }
}

}  // namespace
}  // namespace athanor::distill::detail
