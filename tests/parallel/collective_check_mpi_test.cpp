// Debug mode: what the ranks of a group do not do alike is an error on each of them, not a hang.
#include "parallel/collectives/collective_check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/point_to_point.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;
using tests::world;

constexpr Traffic other = Traffic::other;

// The last rank does something else than the others.
bool is_odd_one() {
  return world().rank() == world().size() - 1;
}

std::string rank_name(int rank) {
  return "world rank " + std::to_string(rank) + " calls";
}

// The calls of this rank fail on it, and the message names rank 0, the last rank and all of `texts`.
template <typename... Texts>
void expect_mismatch(const std::function<void()>& calls, const Texts&... texts) {
  if (world().size() == 1) {
    GTEST_SKIP() << "one rank agrees with itself";
  }
  const CollectiveCheck check(world(), {.deadline_s = 60.0});
  EXPECT_THAT(calls, ThrowsMessage<base::InternalError>(
                         AllOf(HasSubstr(rank_name(0)), HasSubstr(rank_name(world().size() - 1)),
                               HasSubstr("collective_check_mpi_test.cpp"), HasSubstr(texts)...)));
}

TEST(CollectiveCheck, OtherOperationsAreAnErrorThatNamesBoth) {
  at::Tensor tensor = at::zeros({4});
  expect_mismatch(
      [&] {
        if (is_odd_one()) {
          broadcast_(tensor, 0, world(), other);
        } else {
          all_reduce_(tensor, ReduceOp::sum, world(), other);
        }
      },
      "all_reduce", "broadcast", "the operation differs");
}

TEST(CollectiveCheck, OtherElementTypesAreAnError) {
  expect_mismatch(
      [] {
        at::Tensor tensor = at::zeros({4}, is_odd_one() ? at::kDouble : at::kFloat);
        all_reduce_(tensor, ReduceOp::sum, world(), other);
      },
      "4 x Float", "4 x Double", "the element type differs");
}

TEST(CollectiveCheck, OtherCountsAreAnErrorInEveryOperation) {
  const std::vector<std::function<void(std::int64_t)>> operations = {
      [](std::int64_t n) {
        at::Tensor tensor = at::zeros({n});
        all_reduce_(tensor, ReduceOp::sum, world(), other);
      },
      [](std::int64_t n) {
        at::Tensor tensor = at::zeros({n});
        broadcast_(tensor, 0, world(), other);
      },
      [](std::int64_t n) {
        all_gather(at::zeros({3, n}), world(), other);
      },
      [](std::int64_t n) {
        reduce_scatter_sum(at::zeros({world().size(), n}), world(), other);
      },
      [](std::int64_t n) {
        const std::vector<std::int64_t> rows(static_cast<std::size_t>(world().size()), 1);
        all_to_all_v(at::zeros({world().size(), n}), rows, rows, world(), other);
      }};
  for (const auto& operation : operations) {
    expect_mismatch([&] { operation(is_odd_one() ? 5 : 4); }, "the number of elements differs");
  }
}

TEST(CollectiveCheck, RowsThatRanksCountDifferentlyAreAnError) {
  expect_mismatch(
      [] {
        std::vector<std::int64_t> rows(static_cast<std::size_t>(world().size()), 2);
        rows[0] = is_odd_one() ? 3 : 2;
        all_gather_v(at::zeros({2, 1}), rows, world(), other);
      },
      "the rows of each rank differs");
}

TEST(CollectiveCheck, RowsThatAreSentButNotWaitedForAreAnErrorOnAllRanks) {
  const int last = world().size() - 1;
  expect_mismatch(
      [last] {
        std::vector<std::int64_t> rows(static_cast<std::size_t>(world().size()), 1);
        std::vector<std::int64_t> sent = rows;
        if (world().rank() == 0) {
          sent[static_cast<std::size_t>(last)] = 3;
        }
        all_to_all_v(at::zeros({world().size() + (world().rank() == 0 ? 2 : 0), 2}), sent, rows, world(),
                     other);
      },
      "rank 0 sends 3 rows to rank " + std::to_string(last) + ", which waits for 1");
}

TEST(CollectiveCheck, OtherRootsReductionsPurposesAndSitesAreErrors) {
  at::Tensor tensor = at::zeros({4});
  expect_mismatch([&] { broadcast_(tensor, is_odd_one() ? 1 : 0, world(), other); }, "the root differs");
  expect_mismatch([&] { all_reduce_(tensor, is_odd_one() ? ReduceOp::max : ReduceOp::sum, world(), other); },
                  "the reduction differs");
  expect_mismatch(
      [&] {
        all_reduce_(tensor, ReduceOp::sum, world(), is_odd_one() ? Traffic::combine : Traffic::dispatch);
      },
      "for dispatch", "for combine", "the purpose differs");
  expect_mismatch(
      [&] {
        if (is_odd_one()) {
          all_reduce_(tensor, ReduceOp::sum, world(), other);
        } else {
          all_reduce_(tensor, ReduceOp::sum, world(), other);
        }
      },
      "the call site differs");
}

TEST(CollectiveCheck, CollectivesOfTwoGroupsInAnotherOrderAreAnError) {
  const Communicator first = world().duplicate("first");
  const Communicator second = world().duplicate("second");
  expect_mismatch(
      [&] {
        all_reduce_sum(1.0, is_odd_one() ? second : first);
        all_reduce_sum(1.0, is_odd_one() ? first : second);
      },
      "world.first", "world.second", "the group differs");
}

TEST(CollectiveCheck, ARankThatDoesNotComeIsNamedAfterTheDeadline) {
  if (world().size() == 1) {
    GTEST_SKIP() << "one rank waits for nobody";
  }
  const int last = world().size() - 1;
  const Communicator group = world().duplicate("group");
  PointToPoint wire(world(), "wire");  // not checked
  const CollectiveCheck check(world(), {.deadline_s = 0.3});
  if (!is_odd_one()) {
    const base::Stopwatch watch;
    EXPECT_THAT([&] { group.barrier(); },
                ThrowsMessage<base::CommError>(
                    AllOf(HasSubstr("world rank(s) " + std::to_string(last) + " did not come"),
                          HasSubstr("barrier number"), HasSubstr("collective_check_mpi_test.cpp"))));
    EXPECT_LT(watch.seconds(), 10.0);
    wire.send(last, 0, ByteBuffer(1));
    return;
  }
  for (int r = 0; r < last; ++r) {
    const PointToPoint::Ticket ticket = wire.receive(r, 0, ByteBuffer(1));
    EXPECT_TRUE(wire.wait_until([&] { return wire.is_done(ticket); }, 30.0));
  }
  // It comes too late, and to something else.
  EXPECT_THROW(all_reduce_sum(1.0, group), base::Error);
}

// One tensor of `n` elements for each rank.
std::vector<at::Tensor> parts(std::int64_t n) {
  std::vector<at::Tensor> tensors;
  for (int r = 0; r < world().size(); ++r) {
    tensors.push_back(at::full({n}, world().rank(), at::kFloat));
  }
  return tensors;
}

TEST(CollectiveCheck, StartedExchangesAreComparedWhenTheyAreWaitedFor) {
  const int last = world().size() - 1;
  const Communicator lane = world().duplicate("lane");
  expect_mismatch(
      [&] {
        // Nobody waits when it starts.
        PendingExchange first = start_exchange(parts(4), parts(4), lane, other);
        if (world().rank() == 0) {  // late: the others find no other pair that differs meanwhile
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        PendingExchange second = start_exchange(parts(is_odd_one() ? 3 : 2), parts(2), lane, other);
        first.wait();
        second.wait();
      },
      "start_exchange", "rank 0 sends 8 bytes to rank " + std::to_string(last) + ", which waits for 12");
  tests::let_all_arrive(lane);
}

TEST(CollectiveCheck, StartedExchangesMayBeWaitedForInAnyOrderAndWithOthersBetween) {
  const CollectiveCheck check(world(), {.deadline_s = 60.0});
  const Communicator lane = world().duplicate("lane");
  const Communicator other_lane = world().duplicate("lane");
  for (int round = 0; round < 10; ++round) {
    const std::vector<at::Tensor> to = parts(3);
    const std::vector<at::Tensor> second_to = parts(5);
    const std::vector<at::Tensor> third_to = parts(7);
    PendingExchange first = start_exchange(to, parts(3), lane, other);
    PendingExchange second = start_exchange(second_to, parts(5), lane, other);
    PendingExchange third = start_exchange(third_to, parts(7), other_lane, other);
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, world()), world().size());
    third.wait();
    while (!second.test()) {
    }
    first.wait();
    for (int r = 0; r < world().size(); ++r) {
      for (const auto* got : {&to, &second_to, &third_to}) {
        EXPECT_TRUE((*got)[static_cast<std::size_t>(r)].eq(r).all().item<bool>() || r == world().rank());
      }
    }
  }
}

TEST(CollectiveCheck, CommunicatorsOfOneNameAreToldApart) {
  const Communicator first = world().duplicate("twin");
  const Communicator second = world().duplicate("twin");
  EXPECT_EQ(first.name(), second.name());
  expect_mismatch([&] { all_reduce_sum(1.0, is_odd_one() ? second : first); }, "group world.twin,",
                  "group world.twin#2,", "the group differs");
}

TEST(CollectiveCheck, WhatMatchesRunsAsWithoutIt) {
  const CollectiveCheck check(world(), {});
  const int size = world().size();
  const Communicator half = world().split(world().rank() % 2, 0, "parity");
  for (int round = 0; round < 20; ++round) {
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, world()), size);
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, half), half.size());
    std::vector<std::int64_t> sent;
    std::vector<std::int64_t> received;
    std::int64_t total = 0;
    for (int r = 0; r < size; ++r) {
      sent.push_back((world().rank() + 2 * r + round) % 3);  // none for some
      received.push_back((r + 2 * world().rank() + round) % 3);
      total += sent.back();
    }
    const at::Tensor got = all_to_all_v(at::full({total, 2}, world().rank()), sent, received, world(), other);
    std::int64_t row = 0;
    for (int r = 0; r < size; ++r) {
      const std::int64_t count = received[static_cast<std::size_t>(r)];
      EXPECT_TRUE(got.narrow(0, row, count).eq(r).all().item<bool>());
      row += count;
    }
    EXPECT_EQ(broadcast_string("x", size - 1, world()), "x");
    EXPECT_EQ(all_gather_strings(std::string(static_cast<std::size_t>(world().rank()), 'a'), world()).back(),
              std::string(static_cast<std::size_t>(size - 1), 'a'));
  }
  world().barrier();
}

}  // namespace
}  // namespace athanor::parallel
