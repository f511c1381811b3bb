// The largest logits of a row by the body of the CUDA kernel, against a full sort.
#include "kernels/bodies/topk.hpp"

#include <numeric>

#include "kernels/kernel_test.hpp"

namespace athanor::kernels {
namespace {

template <typename A>
struct Kept {
  std::vector<A> values;
  std::vector<std::int32_t> ids;
  bool operator==(const Kept&) const = default;
};

template <typename T>
Kept<accumulation_t<T>> sorted(const std::vector<T>& row, std::int64_t first_id, std::int64_t top_k) {
  using A = accumulation_t<T>;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (bodies::load(row[i]) > -std::numeric_limits<A>::infinity()) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return bodies::load(row[a]) > bodies::load(row[b]); });
  Kept<A> kept{std::vector<A>(static_cast<std::size_t>(top_k), -std::numeric_limits<A>::infinity()),
               std::vector<std::int32_t>(static_cast<std::size_t>(top_k), -1)};
  for (std::size_t k = 0; k < std::min(order.size(), kept.ids.size()); ++k) {
    kept.values[k] = bodies::load(row[order[k]]);
    kept.ids[k] = static_cast<std::int32_t>(first_id + static_cast<std::int64_t>(order[k]));
  }
  return kept;
}

template <typename T>
void expect_sorted(const std::vector<T>& row, std::int64_t top_k) {
  using A = accumulation_t<T>;
  SCOPED_TRACE("top " + std::to_string(top_k) + " of " + std::to_string(row.size()));
  Kept<A> kept{std::vector<A>(static_cast<std::size_t>(top_k)),
               std::vector<std::int32_t>(static_cast<std::size_t>(top_k))};
  bodies::run_rows(bodies::TopkRow<T>{row.data(), static_cast<std::int64_t>(row.size()), 1000, top_k,
                                      kept.values.data(), kept.ids.data()},
                   1);
  EXPECT_EQ(kept, sorted(row, 1000, top_k));
}

template <typename T>
class TopkBody : public ::testing::Test {};
TYPED_TEST_SUITE(TopkBody, tests::ElementTypes);

TYPED_TEST(TopkBody, IsTheBeginningOfAFullSort) {
  for (const std::int64_t vocab : {0, 1, 5, 255, 1000, 20000}) {
    for (const std::int64_t top_k : {1, 4, 64, 257, 300}) {
      expect_sorted(tests::random_values<TypeParam>(vocab, 5, 3.0), top_k);
    }
  }
}

TYPED_TEST(TopkBody, TiesGoToTheLowerId) {
  // More equal logits than the buffer holds: the digits of the ids decide.
  std::vector<TypeParam> row(5000, static_cast<TypeParam>(1.5f));
  expect_sorted(row, 10);
  for (std::size_t i = 0; i < row.size(); i += 3) {
    row[i] = static_cast<TypeParam>(i % 2 == 0 ? 0.0f : -0.0f);
  }
  expect_sorted(row, 3000 - 1000);
  std::fill(row.begin(), row.end(), static_cast<TypeParam>(-0.0f));
  row[4999] = static_cast<TypeParam>(0.0f);
  expect_sorted(row, 7);
}

TYPED_TEST(TopkBody, NeverKeepsNanOrPadding) {
  auto row = tests::random_values<TypeParam>(700, 6);
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (i % 3 != 0) {
      row[i] = static_cast<TypeParam>(i % 3 == 1 ? std::numeric_limits<float>::quiet_NaN()
                                                 : -std::numeric_limits<float>::infinity());
    }
  }
  row[300] = static_cast<TypeParam>(std::numeric_limits<float>::infinity());
  expect_sorted(row, 5);
  expect_sorted(row, 290);  // fewer are there
  expect_sorted(std::vector<TypeParam>(40, static_cast<TypeParam>(-std::numeric_limits<float>::infinity())),
                3);
}

TEST(TopkBody, FirstDigitsOfNegativeNumbersDecideToo) {
  std::vector<double> row(9000);
  for (std::size_t i = 0; i < row.size(); ++i) {
    row[i] = -1.0 - static_cast<double>(i * 7919 % 9000) * 1e-13;
  }
  expect_sorted(row, 2000);
}

TEST(TopkBody, RefusesMoreThanItHolds) {
  const bodies::TopkRow<float> fits{nullptr, 0, 0, topk_capacity, nullptr, nullptr};
  EXPECT_LT(bodies::scratch_bytes_of(fits), 40000u);
  const bodies::TopkRow<float> too_many{nullptr, 0, 0, topk_capacity + 1, nullptr, nullptr};
  EXPECT_GT(bodies::scratch_bytes_of(too_many), 48000u);
}

TEST(MergeTopkBody, IsTheTopOfAllSlices) {
  constexpr std::int64_t ranks = 3, rows = 2, top_k = 5, vocab = 40;
  std::vector<float> all_values;
  std::vector<std::int32_t> all_ids;
  std::vector<std::vector<float>> whole(rows);
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    for (std::int64_t r = 0; r < rows; ++r) {
      auto slice =
          tests::random_values<float>(rank == 1 ? 2 : vocab, static_cast<std::uint64_t>(rank * rows + r));
      slice[0] = 2.0f;  // a tie between slices
      auto& row = whole[static_cast<std::size_t>(r)];
      const auto kept = sorted(slice, static_cast<std::int64_t>(row.size()), top_k);
      row.insert(row.end(), slice.begin(), slice.end());
      all_values.insert(all_values.end(), kept.values.begin(), kept.values.end());
      all_ids.insert(all_ids.end(), kept.ids.begin(), kept.ids.end());
    }
  }
  std::vector<float> values(rows * top_k);
  std::vector<std::int32_t> ids(rows * top_k);
  bodies::run_rows(bodies::MergeTopkRow<float>{all_values.data(), all_ids.data(), ranks, rows, top_k,
                                               values.data(), ids.data()},
                   rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const auto expected = sorted(whole[r], 0, top_k);
    for (std::size_t k = 0; k < top_k; ++k) {
      EXPECT_EQ(ids[r * top_k + k], expected.ids[k]);
      EXPECT_EQ(values[r * top_k + k], expected.values[k]);
    }
  }
}

}  // namespace
}  // namespace athanor::kernels
