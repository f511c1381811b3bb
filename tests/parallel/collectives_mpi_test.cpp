// Collectives against local references, on any number of ranks.
#include "parallel/collectives/collectives.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "rank_data.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::rank_values;
using tests::uneven_rows;
using tests::world;

constexpr at::ScalarType float_types[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

std::vector<std::int64_t> counts(std::int64_t (*rows)(int, int), bool sending) {
  std::vector<std::int64_t> result;
  for (int r = 0; r < world().size(); ++r) {
    result.push_back(sending ? rows(world().rank(), r) : rows(r, world().rank()));
  }
  return result;
}

// What all_to_all_v must give here: from each rank the rows it has for this one.
at::Tensor expected_exchange(std::int64_t (*rows)(int, int), const std::vector<std::int64_t>& row_shape,
                             at::ScalarType type) {
  std::vector<at::Tensor> parts;
  for (int from = 0; from < world().size(); ++from) {
    std::int64_t before = 0;
    std::int64_t total = 0;
    for (int to = 0; to < world().size(); ++to) {
      before += to < world().rank() ? rows(from, to) : 0;
      total += rows(from, to);
    }
    auto shape = row_shape;
    shape.insert(shape.begin(), total);
    parts.push_back(rank_values(from, shape, type).narrow(0, before, rows(from, world().rank())));
  }
  return at::cat(parts, 0);
}

void check_exchange(std::int64_t (*rows)(int, int), const std::vector<std::int64_t>& row_shape,
                    at::ScalarType type) {
  const auto send = counts(rows, true);
  const auto receive = counts(rows, false);
  auto shape = row_shape;
  shape.insert(shape.begin(), std::accumulate(send.begin(), send.end(), std::int64_t{0}));
  const at::Tensor output =
      all_to_all_v(rank_values(world().rank(), shape, type), send, receive, world(), Traffic::dispatch);
  const at::Tensor expected = expected_exchange(rows, row_shape, type);
  EXPECT_TRUE(at::equal(output, expected));
  at::Tensor into = at::zeros_like(expected);
  all_to_all_v_into(into, rank_values(world().rank(), shape, type), send, receive, world(),
                    Traffic::dispatch);
  EXPECT_TRUE(at::equal(into, expected));
}

TEST(AllToAllV, MovesUnevenAndEmptyParts) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kByte}) {
    check_exchange(uneven_rows, {3}, type);
    check_exchange(uneven_rows, {}, type);
    check_exchange(uneven_rows, {2, 5}, type);
  }
}

TEST(AllToAllV, WorksWhenRanksOrAllHaveNothing) {
  check_exchange([](int from, int to) -> std::int64_t { return from == 0 ? 2 + to : 0; }, {4}, at::kFloat);
  check_exchange([](int from, int to) -> std::int64_t { return to == 0 ? 1 + from : 0; }, {4}, at::kFloat);
  check_exchange([](int, int) -> std::int64_t { return 0; }, {4}, at::kFloat);
  check_exchange([](int, int) -> std::int64_t { return 2; }, {0}, at::kFloat);
}

TEST(AllToAllV, MovesLargeParts) {
  check_exchange([](int from, int to) -> std::int64_t { return 150 + 20 * from + to; }, {257}, at::kFloat);
}

TEST(AllToAllV, TakesNonContiguousInput) {
  const auto ones = std::vector<std::int64_t>(static_cast<std::size_t>(world().size()), 1);
  const at::Tensor input = rank_values(world().rank(), {3, world().size()}).t();
  const at::Tensor output = all_to_all_v(input, ones, ones, world(), Traffic::dispatch);
  for (int r = 0; r < world().size(); ++r) {
    EXPECT_TRUE(at::equal(output[r], rank_values(r, {3, world().size()}).t()[world().rank()]));
  }
}

TEST(AllToAllV, RefusesCountsThatDisagreeBeforeAnyMessage) {
  auto send = std::vector<std::int64_t>(static_cast<std::size_t>(world().size()), 1);
  const auto receive = send;
  const at::Tensor input = at::ones({world().size(), 2});
  send.back() += 1;
  EXPECT_THROW(all_to_all_v(input, send, receive, world(), Traffic::other), base::InternalError);
  send.back() = -1;
  EXPECT_THROW(all_to_all_v(input, send, receive, world(), Traffic::other), base::InternalError);
  send.push_back(1);
  EXPECT_THROW(all_to_all_v(input, send, receive, world(), Traffic::other), base::InternalError);
}

TEST(ExchangeCounts, TransposesTheTable) {
  at::Tensor own = at::empty({world().size(), 2}, at::kLong);
  for (int r = 0; r < world().size(); ++r) {
    own[r][0] = 100 * world().rank() + r;
    own[r][1] = -r;
  }
  const at::Tensor got = exchange_counts(own, world(), Traffic::dispatch);
  for (int r = 0; r < world().size(); ++r) {
    EXPECT_EQ(got[r][0].item<std::int64_t>(), 100 * r + world().rank());
    EXPECT_EQ(got[r][1].item<std::int64_t>(), -world().rank());
  }
}

TEST(AllGather, ConcatenatesInRankOrder) {
  for (const at::ScalarType type :
       {at::kFloat, at::kDouble, at::kBFloat16, at::kLong, at::kByte, at::kBool}) {
    std::vector<at::Tensor> parts;
    for (int r = 0; r < world().size(); ++r) {
      parts.push_back(rank_values(r, {2, 3}, type));
    }
    const at::Tensor expected = at::cat(parts, 0);
    EXPECT_TRUE(
        at::equal(all_gather(rank_values(world().rank(), {2, 3}, type), world(), Traffic::other), expected));
    at::Tensor output = at::zeros({2 * world().size(), 3}, type);
    all_gather_into(output, rank_values(world().rank(), {2, 3}, type), world(), Traffic::other);
    EXPECT_TRUE(at::equal(output, expected));
    at::Tensor in_place = at::zeros({2 * world().size(), 3}, type);
    at::Tensor own = in_place.narrow(0, 2 * world().rank(), 2);
    own.copy_(rank_values(world().rank(), {2, 3}, type));
    all_gather_into(in_place, own, world(), Traffic::other);
    EXPECT_TRUE(at::equal(in_place, expected));
  }
  EXPECT_EQ(all_gather(at::empty({0, 3}), world(), Traffic::other).sizes(), (at::IntArrayRef{0, 3}));
}

TEST(AllGatherV, ConcatenatesUnevenParts) {
  std::vector<std::int64_t> rows;
  std::vector<at::Tensor> parts;
  for (int r = 0; r < world().size(); ++r) {
    rows.push_back((r + 2) % 3);
    parts.push_back(rank_values(r, {rows.back(), 5}));
  }
  const at::Tensor own = parts[static_cast<std::size_t>(world().rank())];
  EXPECT_TRUE(at::equal(all_gather_v(own, rows, world(), Traffic::other), at::cat(parts, 0)));
  EXPECT_THROW(all_gather_v(at::ones({7, 5}), rows, world(), Traffic::other), base::InternalError);
}

// The ranks' values added one after another in the accumulation type.
at::Tensor rank_order_sum(std::vector<std::int64_t> shape, at::ScalarType type) {
  const at::ScalarType accumulation = type == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor sum = rank_values(0, shape, type).to(accumulation);
  for (int r = 1; r < world().size(); ++r) {
    sum = sum + rank_values(r, shape, type).to(accumulation);
  }
  return sum;
}

TEST(AllReduce, SumOfFloatsHasTheBitsOfTheRankOrderSum) {
  for (const at::ScalarType type : float_types) {
    for (const std::int64_t numel : {0, 1, 5, 4096, 4097, 10007}) {
      at::Tensor tensor = rank_values(world().rank(), {numel}, type);
      all_reduce_(tensor, ReduceOp::sum, world(), Traffic::grad_dense);
      EXPECT_TRUE(at::equal(tensor, rank_order_sum({numel}, type).to(type))) << type << " " << numel;
    }
  }
}

TEST(AllReduce, BitsDoNotDependOnTheSplitIntoBuckets) {
  at::Tensor whole = rank_values(world().rank(), {9001});
  at::Tensor pieces = whole.clone();
  all_reduce_(whole, ReduceOp::sum, world(), Traffic::grad_dense);
  for (std::int64_t first = 0; first < 9001; first += 1000) {
    at::Tensor piece = pieces.narrow(0, first, std::min<std::int64_t>(1000, 9001 - first));
    all_reduce_(piece, ReduceOp::sum, world(), Traffic::grad_dense);
  }
  EXPECT_TRUE(at::equal(whole, pieces));
}

TEST(AllReduce, LongTensorsAreReducedInPieces) {
  const auto values = [](int rank) {
    return at::arange(1'500'007, at::kFloat) * (0.1f * static_cast<float>(rank + 1));
  };
  at::Tensor tensor = values(world().rank());
  at::Tensor expected = values(0);
  for (int r = 1; r < world().size(); ++r) {
    expected = expected + values(r);
  }
  const at::Tensor whole_rows = tensor.narrow(0, 0, 1'500'000 / world().size() * world().size()).clone();
  all_reduce_(tensor, ReduceOp::sum, world(), Traffic::other);
  EXPECT_TRUE(at::equal(tensor, expected));
  const std::int64_t own = whole_rows.numel() / world().size();
  EXPECT_TRUE(at::equal(reduce_scatter_sum(whole_rows, world(), Traffic::other),
                        expected.narrow(0, own * world().rank(), own)));
}

TEST(AllReduce, ReducesNonContiguousTensorsInPlace) {
  at::Tensor storage = rank_values(world().rank(), {6, 4}, at::kDouble);
  at::Tensor transposed = storage.t();
  all_reduce_(transposed, ReduceOp::sum, world(), Traffic::other);
  EXPECT_TRUE(at::equal(storage, rank_order_sum({6, 4}, at::kDouble)));
}

TEST(AllReduce, MaxAndMinOfFloats) {
  for (const std::int64_t numel : {7, 5000}) {
    at::Tensor max = rank_values(world().rank(), {numel});
    at::Tensor min = max.clone();
    at::Tensor expected_max = rank_values(0, {numel});
    at::Tensor expected_min = expected_max;
    for (int r = 1; r < world().size(); ++r) {
      expected_max = at::maximum(expected_max, rank_values(r, {numel}));
      expected_min = at::minimum(expected_min, rank_values(r, {numel}));
    }
    all_reduce_(max, ReduceOp::max, world(), Traffic::other);
    all_reduce_(min, ReduceOp::min, world(), Traffic::other);
    EXPECT_TRUE(at::equal(max, expected_max));
    EXPECT_TRUE(at::equal(min, expected_min));
  }
  at::Tensor nan =
      at::full({2}, world().rank() + 1 == world().size() ? std::numeric_limits<float>::quiet_NaN() : 1.0f);
  all_reduce_(nan, ReduceOp::max, world(), Traffic::other);
  EXPECT_TRUE(nan.isnan().all().item<bool>());
}

TEST(AllReduce, Integers) {
  const std::int64_t n = world().size();
  for (const at::ScalarType type : {at::kInt, at::kLong, at::kByte}) {
    const at::Tensor own = at::full({3}, world().rank() + 1, type);
    at::Tensor sum = own.clone();
    at::Tensor max = own.clone();
    at::Tensor min = own.clone();
    all_reduce_(sum, ReduceOp::sum, world(), Traffic::other);
    all_reduce_(max, ReduceOp::max, world(), Traffic::other);
    all_reduce_(min, ReduceOp::min, world(), Traffic::other);
    EXPECT_TRUE(at::equal(sum, at::full({3}, n * (n + 1) / 2, type)));
    EXPECT_TRUE(at::equal(max, at::full({3}, n, type)));
    EXPECT_TRUE(at::equal(min, at::full({3}, 1, type)));
  }
  at::Tensor any = at::full({2}, world().rank() == 0, at::kBool);
  at::Tensor every = any.clone();
  all_reduce_(any, ReduceOp::max, world(), Traffic::other);
  all_reduce_(every, ReduceOp::min, world(), Traffic::other);
  EXPECT_TRUE(any.all().item<bool>());
  EXPECT_EQ(every.all().item<bool>(), n == 1);
  at::Tensor unsupported = at::ones({2}, at::kShort);
  EXPECT_THROW(all_reduce_(unsupported, ReduceOp::sum, world(), Traffic::other), base::InternalError);
}

TEST(AllReduce, Scalars) {
  double expected = 0.0;
  for (int r = 0; r < world().size(); ++r) {
    expected += 0.1 * (r + 1);
  }
  EXPECT_EQ(all_reduce_sum(0.1 * (world().rank() + 1), world()), expected);
  EXPECT_EQ(all_reduce_sum(std::int64_t{world().rank()}, world()), world().size() * (world().size() - 1) / 2);
  EXPECT_EQ(all_reduce_max(std::int64_t{world().rank()}, world()), world().size() - 1);
}

TEST(ReduceScatter, SumsThisRanksRowsInRankOrder) {
  const std::int64_t n = world().size();
  for (const at::ScalarType type : float_types) {
    for (const std::int64_t rows : {0, 1, 1500}) {
      const at::Tensor expected = rank_order_sum({n * rows, 3}, type).narrow(0, rows * world().rank(), rows);
      const at::Tensor input = rank_values(world().rank(), {n * rows, 3}, type);
      EXPECT_TRUE(at::equal(reduce_scatter_sum(input, world(), Traffic::other), expected.to(type)));
      at::Tensor wide = at::empty({rows, 3}, expected.options());
      reduce_scatter_sum_into(wide, input, world(), Traffic::other);
      EXPECT_TRUE(at::equal(wide, expected));
      at::Tensor in_place = input.clone();
      at::Tensor own = in_place.narrow(0, rows * world().rank(), rows);
      reduce_scatter_sum_into(own, in_place, world(), Traffic::other);
      EXPECT_TRUE(at::equal(own, expected.to(type)));
    }
  }
  EXPECT_THROW(reduce_scatter_sum(at::ones({n, 2}, at::kLong), world(), Traffic::other), base::InternalError);
}

TEST(Broadcast, GivesTheRootsTensor) {
  for (int root = 0; root < world().size(); ++root) {
    at::Tensor tensor = rank_values(world().rank(), {3, 4});
    broadcast_(tensor, root, world(), Traffic::other);
    EXPECT_TRUE(at::equal(tensor, rank_values(root, {3, 4})));
    at::Tensor storage = rank_values(world().rank(), {3, 4});
    at::Tensor transposed = storage.t();
    broadcast_(transposed, root, world(), Traffic::other);
    EXPECT_TRUE(at::equal(storage, rank_values(root, {3, 4})));
  }
  at::Tensor empty = at::empty({0});
  broadcast_(empty, 0, world(), Traffic::other);
}

TEST(Agree, IsTrueOnlyWhenAllRanksAre) {
  EXPECT_TRUE(agree(true, world()));
  EXPECT_FALSE(agree(world().rank() != world().size() - 1, world()));
}

TEST(Strings, AreGatheredAndBroadcast) {
  const auto text_of = [](int rank) {
    return std::string(static_cast<std::size_t>(rank * 3 % 5), 'a') + (rank == 1 ? "é\n" : "");
  };
  const auto texts = all_gather_strings(text_of(world().rank()), world());
  ASSERT_EQ(texts.size(), static_cast<std::size_t>(world().size()));
  for (int r = 0; r < world().size(); ++r) {
    EXPECT_EQ(texts[static_cast<std::size_t>(r)], text_of(r));
    EXPECT_EQ(broadcast_string(text_of(world().rank()), r, world()), text_of(r));
  }
}

TEST(NullCommunicator, CollectivesAreTheIdentity) {
  const Communicator null;
  at::Tensor tensor = rank_values(0, {4, 2});
  const at::Tensor before = tensor.clone();
  const std::vector<std::int64_t> rows{4};
  EXPECT_TRUE(at::equal(all_to_all_v(tensor, rows, rows, null, Traffic::other), before));
  EXPECT_TRUE(at::equal(all_gather(tensor, null, Traffic::other), before));
  EXPECT_TRUE(at::equal(reduce_scatter_sum(tensor, null, Traffic::other), before));
  at::Tensor output = at::empty({4, 2});
  all_gather_into(output, tensor, null, Traffic::other);
  EXPECT_TRUE(at::equal(output, before));
  reduce_scatter_sum_into(output, tensor, null, Traffic::other);
  all_reduce_(tensor, ReduceOp::sum, null, Traffic::other);
  broadcast_(tensor, 0, null, Traffic::other);
  EXPECT_TRUE(at::equal(tensor, before));
  EXPECT_FALSE(agree(false, null));
  EXPECT_EQ(all_gather_strings("x", null), std::vector<std::string>{"x"});
  EXPECT_EQ(null.traffic().bytes(Traffic::other), 0);
  null.barrier();
}

}  // namespace
}  // namespace athanor::parallel
