// The distillation loss' row kernels on a GPU against the same bodies run on the host.
#include "kernels/distillation_cases.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using bodies::run_rows;
using tests::DeviceArray;
using tests::expect_twin;
using tests::numbers_of;

template <typename T>
class DistillationGpu : public tests::GpuKernels {
 protected:
  using A = accumulation_t<T>;

  /// Equal numbers, not finite ones included.
  template <typename S>
  void expect_same_structs(const DeviceArray<S>& actual, const std::vector<S>& expected, const char* what) {
    std::vector<A> a = numbers_of<A>(this->get(actual)), b = numbers_of<A>(expected);
    for (std::size_t i = 0; i < b.size(); ++i) {
      if (!std::isfinite(b[i])) {
        EXPECT_TRUE(tests::same_number(a[i], b[i])) << what << " " << i;
        a[i] = b[i] = A(0);
      }
    }
    expect_twin(a, b, what);
  }
};
TYPED_TEST_SUITE(DistillationGpu, tests::ElementTypes);

TYPED_TEST(DistillationGpu, DenseLosses) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t rows : {0, 9}) {
    for (const std::int64_t vocab : {0, 1, 300, 1031}) {
      for (const Divergence loss : tests::all_divergences) {
        const tests::DenseCase<T> c(rows, vocab);
        std::vector<DenseStatistics<A>> statistics(static_cast<std::size_t>(rows));
        const auto student = this->put(c.student);
        const auto teacher = this->put(c.teacher), inverse_t = this->put(c.inverse_t);
        const auto labels = this->put(c.labels);
        const auto flags = this->put(c.flags);
        const DeviceArray<DenseStatistics<A>> device_statistics(statistics.size());
        cuda::dense_statistics(student.data(), teacher.data(), labels.data(), flags.data(), inverse_t.data(),
                               rows, vocab, loss, device_statistics.data(), this->stream());
        run_rows(
            bodies::DenseStatisticsRow<T>{c.student.data(), c.teacher.data(), c.labels.data(), c.flags.data(),
                                          c.inverse_t.data(), vocab, loss, statistics.data()},
            rows);
        this->expect_same_structs(device_statistics, statistics, "statistics");
        if (vocab == 0) {
          continue;
        }
        const auto rows_of = c.merged(statistics, loss);
        const auto device_rows = this->put(rows_of);
        std::vector<DivergenceSums<A>> sums(statistics.size());
        const DeviceArray<DivergenceSums<A>> device_sums(sums.size());
        if (loss == Divergence::skew_kl || loss == Divergence::skew_reverse_kl || loss == Divergence::jsd) {
          cuda::divergence_sums(student.data(), teacher.data(), flags.data(), device_rows.data(), rows, vocab,
                                loss, A(0.3), device_sums.data(), this->stream());
          run_rows(bodies::DivergenceSumsRow<T>{c.student.data(), c.teacher.data(), c.flags.data(),
                                                rows_of.data(), vocab, loss, A(0.3), sums.data()},
                   rows);
          this->expect_same_structs(device_sums, sums, "sums");
        }
        auto gradient = c.student;
        cuda::dense_backward(student.data(), teacher.data(), labels.data(), flags.data(), device_rows.data(),
                             rows, vocab, loss, A(0.3), this->stream());
        run_rows(bodies::DenseBackwardRow<T>{gradient.data(), c.teacher.data(), c.labels.data(),
                                             c.flags.data(), rows_of.data(), vocab, loss, A(0.3)},
                 rows);
        expect_twin(this->get(student), gradient, "gradient");
      }
    }
  }
}

TYPED_TEST(DistillationGpu, SparseLosses) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t vocab : {0, 1, 300, 1031}) {
    constexpr std::int64_t rows = 9;
    tests::SparseCase<T> c(rows, vocab);
    std::vector<SparseStatistics<A>> statistics(rows);
    const auto student = this->put(c.student);
    const auto weight = this->put(c.weight), level = this->put(c.level), inverse_t = this->put(c.inverse_t);
    const auto labels = this->put(c.labels);
    const auto flags = this->put(c.flags);
    const auto ids = this->put(c.ids);
    const SparseTeacher<A> teacher = {ids.data(), weight.data(), level.data(), c.top_k, c.first_id};
    const DeviceArray<SparseStatistics<A>> device_statistics(rows);
    cuda::sparse_statistics(student.data(), teacher, labels.data(), flags.data(), inverse_t.data(), rows,
                            vocab, device_statistics.data(), this->stream());
    auto written = c.student;
    run_rows(bodies::SparseStatisticsRow<T>{written.data(), c.sparse_teacher(), c.labels.data(),
                                            c.flags.data(), c.inverse_t.data(), vocab, statistics.data()},
             rows);
    this->expect_same_structs(device_statistics, statistics, "statistics");
    tests::expect_same(this->get(student), c.student, "restored logits");
    if (vocab < 2) {
      continue;
    }
    const auto rows_of = c.merged(statistics);
    const auto device_rows = this->put(rows_of);
    cuda::sparse_backward(student.data(), teacher, labels.data(), flags.data(), device_rows.data(), rows,
                          vocab, this->stream());
    run_rows(bodies::SparseBackwardRow<T>{written.data(), c.sparse_teacher(), c.labels.data(), c.flags.data(),
                                          rows_of.data(), vocab},
             rows);
    expect_twin(this->get(student), written, "gradient");
  }
}

}  // namespace
}  // namespace athanor::kernels
