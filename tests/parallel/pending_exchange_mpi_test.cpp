#include "parallel/collectives/pending_exchange.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::world;

// Numbers that say who sent them to whom, and in which exchange.
at::Tensor part(int from, int to, int exchange, std::int64_t count) {
  return at::full({count}, from + 100 * to + 10000 * exchange, at::kInt);
}

struct Sent {
  std::vector<at::Tensor> receive;
  PendingExchange pending;
};

// Rank r gets r + 1 parts of a few or many elements, none from rank 0 in every third exchange.
std::int64_t count_of(int from, int to, int exchange) {
  return from == 0 && exchange % 3 == 2 ? 0 : (exchange % 2 == 0 ? 7 : 200'000) + 3 * to + from;
}

Sent start(int exchange, const Communicator& comm) {
  Sent sent;
  std::vector<at::Tensor> send;
  for (int r = 0; r < comm.size(); ++r) {
    send.push_back(part(comm.rank(), r, exchange, count_of(comm.rank(), r, exchange)));
    sent.receive.push_back(at::zeros({count_of(r, comm.rank(), exchange)}, at::kInt));
  }
  sent.pending = start_exchange(sent.receive, std::move(send), comm, Traffic::grad_dense);
  return sent;
}

void expect_arrived(const Sent& sent, int exchange, const Communicator& comm) {
  for (int r = 0; r < comm.size(); ++r) {
    if (r != comm.rank()) {
      EXPECT_TRUE(at::equal(sent.receive[static_cast<std::size_t>(r)],
                            part(r, comm.rank(), exchange, count_of(r, comm.rank(), exchange))))
          << "exchange " << exchange << " from rank " << r;
    }
  }
}

TEST(PendingExchange, MatchesInTheOrderOfTheirStartWheneverThatIs) {
  const Communicator lane = world().duplicate("lane");
  std::vector<Sent> sent;
  for (int exchange = 0; exchange < 6; ++exchange) {
    std::this_thread::sleep_for(std::chrono::milliseconds((world().rank() * 7 + exchange * 5) % 11));
    sent.push_back(start(exchange, lane));
    // A blocking collective meanwhile, on another communicator and on this one.
    EXPECT_EQ(all_reduce_sum(std::int64_t{1}, exchange % 2 == 0 ? world() : lane), world().size());
  }
  for (int i = 0; i < 6; ++i) {
    const int exchange = (i + world().rank()) % 6;  // all are started, so the order of waiting is free
    Sent& one = sent[static_cast<std::size_t>(exchange)];
    if (i % 2 == 0) {
      one.pending.wait();
    } else {
      while (!one.pending.test()) {
      }
    }
    EXPECT_FALSE(one.pending.is_under_way());
    one.pending.wait();  // nothing
    EXPECT_TRUE(one.pending.test());
    expect_arrived(one, exchange, lane);
  }
}

TEST(PendingExchange, KeepsWhatItSendsAndIsMovedWithIt) {
  const Communicator lane = world().duplicate("lane");
  PendingExchange moved;
  std::vector<at::Tensor> receive;
  {
    Sent sent = start(1, lane);
    receive = sent.receive;
    moved = std::move(sent.pending);
    EXPECT_FALSE(sent.pending.is_under_way());  // NOLINT: a moved-from handle has nothing under way
  }
  EXPECT_EQ(moved.is_under_way(), world().size() > 1);
  moved.wait();
  Sent arrived;
  arrived.receive = std::move(receive);
  expect_arrived(arrived, 1, lane);
}

TEST(PendingExchange, CountsItsBytesOnceAndShowsItsSpans) {
  struct Recorder : base::SpanObserver {
    void begin(const base::Span& span) noexcept override {
      if (span.group.ends_with(".lane")) {
        spans.emplace_back(std::string(span.name), span.bytes);
        numbers.push_back(span.number);
      }
    }
    void end(const base::Span&) noexcept override {}
    std::vector<std::pair<std::string, std::int64_t>> spans;
    std::vector<std::int64_t> numbers;
  };
  const Communicator lane = world().duplicate("lane");
  const std::int64_t before = lane.traffic().bytes(Traffic::grad_dense);
  std::int64_t expected = 0;
  for (int r = 0; r < lane.size(); ++r) {
    expected += r == lane.rank() ? 0 : 4 * count_of(lane.rank(), r, 3);
  }
  Recorder recorder;
  {
    const base::SpanObservation observation(recorder);
    Sent sent = start(3, lane);
    sent.pending.wait();
  }
  EXPECT_EQ(lane.traffic().bytes(Traffic::grad_dense) - before, expected);
  if (world().size() == 1) {
    EXPECT_TRUE(recorder.spans.empty());
    return;
  }
  ASSERT_GE(recorder.spans.size(), 1u);
  EXPECT_EQ(recorder.spans[0], std::pair(std::string("start_exchange"), expected));
  for (std::size_t i = 1; i < recorder.spans.size(); ++i) {
    const auto& [name, bytes] = recorder.spans[i];  // it may have ended before anybody waited
    EXPECT_TRUE(name == "wait_exchange" || name == "end_exchange") << name;
    EXPECT_EQ(bytes, 0);
    EXPECT_EQ(recorder.numbers[i], recorder.numbers[0]);
  }
}

TEST(PendingExchange, OneThatIsDroppedDoesNoHarm) {
  const Communicator lane = world().duplicate("lane");
  {
    const Sent sent = start(1, lane);
    world().barrier();  // all have started: what is under way has somewhere to go
  }
  const Communicator other = world().duplicate("other");
  Sent sent = start(2, other);
  sent.pending.wait();
  expect_arrived(sent, 2, other);
  tests::let_all_arrive(lane);
}

TEST(PendingExchange, WrongNumbersOfTensorsAreRefused) {
  if (world().size() > 1) {
    EXPECT_THROW(start_exchange({}, {}, world(), Traffic::other), base::InternalError);
  }
}

TEST(PendingExchange, ANullCommunicatorHasNothingToExchange) {
  const Communicator null;
  PendingExchange pending = start_exchange({at::Tensor()}, {at::Tensor()}, null, Traffic::other);
  EXPECT_FALSE(pending.is_under_way());
  pending.wait();
}

}  // namespace
}  // namespace athanor::parallel
