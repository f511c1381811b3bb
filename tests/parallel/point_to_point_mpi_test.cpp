// Bytes from rank to rank: order, tags, long buffers in parts, oneself, deadlines, errors, early ends.
#include "parallel/point_to_point.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::world;
using Ticket = PointToPoint::Ticket;

constexpr double patience_s = 60.0;

ByteBuffer bytes_of(const std::string& text) {
  ByteBuffer bytes(text.size());
  std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), bytes.data());
  return bytes;
}

std::string text_of(const ByteBuffer& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

std::string received(PointToPoint& wire, Ticket ticket) {
  EXPECT_TRUE(wire.wait_until([&] { return wire.is_done(ticket); }, patience_s));
  return text_of(wire.take(ticket));
}

void expect_ring(PointToPoint& wire, const std::vector<std::size_t>& sizes) {
  const int target = (wire.rank() + 1) % wire.size();
  const int source = (wire.rank() + wire.size() - 1) % wire.size();
  std::vector<Ticket> receives;
  std::vector<Ticket> sends;
  for (int tag = 0; tag < 2; ++tag) {
    for (const std::size_t size : sizes) {
      receives.push_back(wire.receive(source, tag, ByteBuffer(size + 3)));  // room for more than comes
    }
  }
  for (int tag = 1; tag >= 0; --tag) {  // the tags in another order than the receives
    for (const std::size_t size : sizes) {
      sends.push_back(
          wire.send(target, tag, bytes_of(std::string(size, static_cast<char>('a' + wire.rank() + tag)))));
    }
  }
  for (std::size_t i = 0; i < receives.size(); ++i) {
    const auto tag = static_cast<int>(i / sizes.size());
    EXPECT_EQ(received(wire, receives[i]),
              std::string(sizes[i % sizes.size()], static_cast<char>('a' + source + tag)));
  }
  for (const Ticket ticket : sends) {
    received(wire, ticket);
  }
  EXPECT_EQ(wire.num_under_way(), 0);
}

TEST(PointToPoint, ARingOfShortAndLongMessages) {
  PointToPoint wire(world(), "ring");
  expect_ring(wire, {0, 1, 70'000, 3'000'000, 5});
}

// A receiver that expects no more than `max_message_bytes` above what comes must see the same parts, so here
// the sizes are exact.
TEST(PointToPoint, LongBuffersTravelInParts) {
  PointToPointOptions options;
  options.max_message_bytes = 1000;
  PointToPoint wire(world(), "parts", options);
  const int target = (wire.rank() + 1) % wire.size();
  const int source = (wire.rank() + wire.size() - 1) % wire.size();
  for (const std::size_t size : {999, 1000, 1001, 25'431}) {
    const Ticket first = wire.receive(source, 4, ByteBuffer(size));
    const Ticket second = wire.receive(source, 4, ByteBuffer(size));
    std::string text(size, ' ');
    for (std::size_t i = 0; i < size; ++i) {
      text[i] = static_cast<char>('a' + i % 23);
    }
    const Ticket one = wire.send(target, 4, bytes_of(text));
    const Ticket two = wire.send(target, 4, bytes_of(std::string(size, 'z')));
    EXPECT_EQ(received(wire, second), std::string(size, 'z'));
    EXPECT_EQ(received(wire, first), text);
    received(wire, one);
    received(wire, two);
  }
}

TEST(PointToPoint, OneRankWithoutMpi) {
  PointToPoint wire(Communicator{}, "alone");
  expect_ring(wire, {0, 1, 1000});
  wire.send(0, 3, bytes_of("unasked"));
  const Ticket late = wire.receive(0, 3, ByteBuffer(100));
  EXPECT_TRUE(wire.is_done(late));
  EXPECT_EQ(text_of(wire.take(late)), "unasked");
}

TEST(PointToPoint, CountsTheBytesForOthers) {
  PointToPoint wire(world(), "counted");
  const std::int64_t before = world().traffic().bytes(Traffic::link);
  expect_ring(wire, {10, 2000});
  EXPECT_EQ(world().traffic().bytes(Traffic::link) - before, world().size() > 1 ? 2 * 2010 : 0);
}

TEST(PointToPoint, WaitsEndAtTheDeadline) {
  PointToPoint wire(world(), "deadline");
  const Ticket ticket = wire.receive((wire.rank() + 1) % wire.size(), 0, ByteBuffer(4));
  const base::Stopwatch watch;
  EXPECT_FALSE(wire.wait_until([&] { return wire.is_done(ticket); }, 0.05));
  EXPECT_GE(watch.seconds(), 0.05);
  EXPECT_LT(watch.seconds(), 5.0);
}

// The receives that are left are cancelled, not waited for.
TEST(PointToPoint, EndsAtOnceWithReceivesThatNobodyAnswers) {
  const base::Stopwatch watch;
  {
    PointToPoint wire(world(), "cancelled");
    for (int source = 0; source < wire.size(); ++source) {
      wire.receive(source, 1, ByteBuffer(1'000'000));
    }
  }
  EXPECT_LT(watch.seconds(), 5.0);
}

TEST(PointToPoint, AMessageThatIsTooLongIsAnErrorOfItsReceive) {
  PointToPoint wire(world(), "long");
  const int target = (wire.rank() + 1) % wire.size();
  const int source = (wire.rank() + wire.size() - 1) % wire.size();
  const Ticket bad = wire.receive(source, 0, ByteBuffer(10));
  const Ticket good = wire.receive(source, 1, ByteBuffer(10));
  wire.send(target, 0, bytes_of(std::string(11, 'x')));
  wire.send(target, 1, bytes_of("fine"));
  EXPECT_EQ(received(wire, good), "fine");
  EXPECT_TRUE(wire.wait_until([&] { return wire.is_done(bad); }, patience_s));
  try {
    wire.take(bad);
    ADD_FAILURE() << "no error";
  } catch (const base::CommError& error) {
    EXPECT_NE(std::string(error.what()).find("from rank " + std::to_string(source) + " with tag 0"),
              std::string::npos)
        << error.what();
  }
  EXPECT_TRUE(wire.wait_until([&] { return wire.num_under_way() == 0; }, patience_s));
}

TEST(PointToPoint, RefusesWrongRanksTagsAndTickets) {
  PointToPoint wire(world(), "refusing");
  EXPECT_THROW(wire.send(wire.size(), 0, {}), base::InternalError);
  EXPECT_THROW(wire.receive(-1, 0, {}), base::InternalError);
  EXPECT_THROW(wire.send(0, -1, {}), base::InternalError);
  EXPECT_THROW(wire.is_done(77), base::InternalError);
  EXPECT_THROW(wire.take(77), base::InternalError);
  EXPECT_THROW(ByteBuffer(3).resize(4), base::InternalError);
}

}  // namespace
}  // namespace athanor::parallel
