// Every algorithm of every operation leaves the same bytes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <vector>

#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/collectives/algorithms/mpi_sums.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/rank_data.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::rank_values;
using tests::uneven_rows;
using tests::world;

// The world's table for the length of a test.
class WithRules {
 public:
  explicit WithRules(std::vector<AlgorithmRule> rules) {
    algorithms_of(world()) = AlgorithmTable(std::move(rules));
  }
  ~WithRules() { algorithms_of(world()) = AlgorithmTable(); }
  WithRules(const WithRules&) = delete;
  WithRules& operator=(const WithRules&) = delete;
};

// Calls test(algorithm) with each algorithm of the operation chosen, twice: messages must not get mixed up.
template <typename Test>
void with_each_algorithm(Operation operation, const Test& test) {
  for (const Algorithm algorithm : algorithms_for(operation)) {
    SCOPED_TRACE(std::string(name_of(operation)) + ":" + std::string(name_of(algorithm)));
    const WithRules rules({{operation, any_ranks, any_bytes, algorithm}});
    test();
    test();
  }
}

using RowCount = std::int64_t (*)(int from, int to);

// What rank `from` sends to rank `to` under `rows`, 3 columns wide.
at::Tensor message(int from, int to, std::int64_t rows) {
  return rank_values(from, {rows, 3}, at::kFloat, to);
}

void expect_exchange(RowCount rows) {
  std::vector<std::int64_t> send_rows, receive_rows;
  std::vector<at::Tensor> sent, expected;
  for (int r = 0; r < world().size(); ++r) {
    send_rows.push_back(rows(world().rank(), r));
    receive_rows.push_back(rows(r, world().rank()));
    sent.push_back(message(world().rank(), r, send_rows.back()));
    expected.push_back(message(r, world().rank(), receive_rows.back()));
  }
  EXPECT_TRUE(at::equal(all_to_all_v(at::cat(sent), send_rows, receive_rows, world(), Traffic::dispatch),
                        at::cat(expected)));
}

TEST(ExchangeAlgorithms, MoveTheSameBytes) {
  with_each_algorithm(Operation::exchange, [] {
    expect_exchange([](int, int) -> std::int64_t { return 5; });
    expect_exchange([](int, int) -> std::int64_t { return 0; });
    expect_exchange(uneven_rows);
    expect_exchange([](int, int to) -> std::int64_t { return to == 0 ? 4001 : 0; });  // all to one rank
    expect_exchange([](int from, int) -> std::int64_t { return from == 0 ? 4001 : 0; });
  });
}

// Sizes differ between ranks, so that one may choose this and another that.
TEST(ExchangeAlgorithms, RanksMayMixThoseOfPointToPoint) {
  for (const std::int64_t limit : {1, 30, 100, 48012}) {
    const WithRules rules({{Operation::exchange, any_ranks, limit, Algorithm::pairwise}});
    expect_exchange(uneven_rows);
    expect_exchange([](int from, int) -> std::int64_t { return from % 2 == 0 ? 4001 : 1; });
    expect_exchange([](int from, int to) -> std::int64_t { return (from * 7 + to * 3) % 5 == 0 ? 9000 : 0; });
  }
}

TEST(ExchangeAlgorithms, SumsHaveTheSameBits) {
  const std::int64_t n = world().size();
  const at::Tensor input = rank_values(world().rank(), {n * 50'021});
  const at::Tensor expected = reduce_scatter_sum(input, world(), Traffic::other);
  with_each_algorithm(Operation::exchange, [&] {
    EXPECT_TRUE(at::equal(reduce_scatter_sum(input, world(), Traffic::other), expected));
    EXPECT_EQ(reduce_scatter_sum(at::empty({0}), world(), Traffic::other).numel(), 0);
  });
}

void expect_all_gather(RowCount rows, at::ScalarType type) {
  std::vector<std::int64_t> counts;
  std::vector<at::Tensor> parts;
  for (int r = 0; r < world().size(); ++r) {
    counts.push_back(rows(r, 0));
    parts.push_back(rank_values(r, {counts.back(), 7}, type));
  }
  const at::Tensor own = parts[static_cast<std::size_t>(world().rank())];
  EXPECT_TRUE(at::equal(all_gather_v(own, counts, world(), Traffic::other), at::cat(parts)));
}

TEST(AllGatherAlgorithms, MoveTheSameBytes) {
  with_each_algorithm(Operation::all_gather, [] {
    for (const at::ScalarType type : {at::kFloat, at::kByte, at::kBFloat16}) {
      expect_all_gather([](int, int) -> std::int64_t { return 3; }, type);
      expect_all_gather([](int, int) -> std::int64_t { return 0; }, type);
      expect_all_gather([](int rank, int) -> std::int64_t { return (rank + 2) % 3; }, type);
      expect_all_gather([](int rank, int) -> std::int64_t { return rank == 0 ? 20'011 : 0; }, type);
      expect_all_gather([](int rank, int) -> std::int64_t { return rank == 0 ? 0 : 20'011; }, type);
    }
  });
}

TEST(AllGatherAlgorithms, WorkInPlace) {
  std::vector<at::Tensor> parts;
  for (int r = 0; r < world().size(); ++r) {
    parts.push_back(rank_values(r, {1000, 3}));
  }
  with_each_algorithm(Operation::all_gather, [&] {
    at::Tensor whole = at::zeros({1000 * world().size(), 3});
    at::Tensor own = whole.narrow(0, 1000 * world().rank(), 1000);
    own.copy_(parts[static_cast<std::size_t>(world().rank())]);
    all_gather_into(whole, own, world(), Traffic::other);
    EXPECT_TRUE(at::equal(whole, at::cat(parts)));
  });
}

TEST(AllReduceAlgorithms, HaveTheSameBits) {
  for (const at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    for (const std::int64_t numel : {0, 1, 3, 4097, 70'001}) {
      at::Tensor expected = rank_values(0, {numel}, type).to(type == at::kDouble ? at::kDouble : at::kFloat);
      for (int r = 1; r < world().size(); ++r) {
        expected = expected + rank_values(r, {numel}, type);
      }
      with_each_algorithm(Operation::all_reduce, [&] {
        at::Tensor tensor = rank_values(world().rank(), {numel}, type);
        all_reduce_(tensor, ReduceOp::sum, world(), Traffic::grad_dense);
        EXPECT_TRUE(at::equal(tensor, expected.to(type)));
      });
    }
  }
}

// Bytes are those of the operation, not of the way it was done.
TEST(AllReduceAlgorithms, CountTheSameBytes) {
  std::vector<std::int64_t> counted;
  with_each_algorithm(Operation::all_reduce, [&] {
    const std::int64_t before = world().traffic().bytes(Traffic::grad_expert);
    at::Tensor tensor = at::ones({1001});
    all_reduce_(tensor, ReduceOp::sum, world(), Traffic::grad_expert);
    counted.push_back(world().traffic().bytes(Traffic::grad_expert) - before);
  });
  EXPECT_EQ(counted, std::vector<std::int64_t>(counted.size(), counted[0]));
}

TEST(BroadcastAlgorithms, MoveTheSameBytes) {
  with_each_algorithm(Operation::broadcast, [] {
    for (int root = 0; root < world().size(); ++root) {
      for (const std::int64_t numel : {0, 1, 100'003}) {
        at::Tensor tensor = rank_values(world().rank(), {numel}, at::kHalf);
        broadcast_(tensor, root, world(), Traffic::other);
        EXPECT_TRUE(at::equal(tensor, rank_values(root, {numel}, at::kHalf)));
      }
    }
  });
}

std::int64_t nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// By the machine's clock, which all ranks of these tests share; each rank is the late one once.
TEST(BarrierAlgorithms, NobodyLeavesBeforeTheLastHasCome) {
  with_each_algorithm(Operation::barrier, [] {
    for (int late = 0; late < world().size(); ++late) {
      if (world().rank() == late) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      const std::int64_t came = nanoseconds();
      world().barrier();
      const std::int64_t left = nanoseconds();
      EXPECT_GE(left, all_reduce_max(came, world())) << "rank " << late << " was late";
    }
  });
}

TEST(Algorithms, AreThoseOfAllCommunicatorsOfOneWorld) {
  const Communicator half = world().split(world().rank() % 2, world().rank(), "algorithms_half");
  const Communicator copy = world().duplicate("algorithms_copy");
  const WithRules rules({{Operation::all_gather, any_ranks, any_bytes, Algorithm::ring}});
  EXPECT_EQ(chosen_algorithm(half, Operation::all_gather, 1), Algorithm::ring);
  EXPECT_EQ(chosen_algorithm(copy, Operation::all_gather, 1 << 20), Algorithm::ring);
}

// The reference of the measurements sums too, in some order.
TEST(MpiSums, AreNearOurs) {
  const std::int64_t n = world().size();
  const at::Tensor input = rank_values(world().rank(), {n * 1000});
  at::Tensor ours = input.clone();
  at::Tensor theirs = input.clone();
  all_reduce_(ours, ReduceOp::sum, world(), Traffic::other);
  mpi_all_reduce_sum(theirs, world());
  EXPECT_TRUE(at::allclose(ours, theirs, 1e-5, 1e-4));
  at::Tensor part = at::empty({1000});
  mpi_reduce_scatter_sum(part, input, world());
  EXPECT_TRUE(at::allclose(part, ours.narrow(0, 1000 * world().rank(), 1000), 1e-5, 1e-4));
}

}  // namespace
}  // namespace athanor::parallel
