// Letters between ranks: order, sizes, oneself, a group of one, two ranks that both finish.
#include "parallel/mailbox.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/traffic.hpp"
#include "support/mpi_test.hpp"

namespace athanor::parallel {
namespace {

using tests::world;

Letter wait_for_letter(Mailbox& mailbox) {
  while (true) {
    if (auto letter = mailbox.take()) {
      return std::move(*letter);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

TEST(Mailbox, EveryRankGetsEveryLetterInTheOrderOfItsSender) {
  Mailbox mailbox(world(), "letters");
  constexpr int letters = 20;
  for (int i = 0; i < letters; ++i) {
    for (int target = 0; target < mailbox.size(); ++target) {
      mailbox.post(target, 3, std::to_string(mailbox.rank()) + ":" + std::to_string(i));
    }
  }
  std::map<int, int> next;
  for (int i = 0; i < letters * mailbox.size(); ++i) {
    const Letter letter = wait_for_letter(mailbox);
    EXPECT_EQ(letter.kind, 3);
    EXPECT_EQ(letter.bytes, std::to_string(letter.source) + ":" + std::to_string(next[letter.source]++));
  }
  EXPECT_EQ(static_cast<int>(next.size()), mailbox.size());
  mailbox.finish();
  world().barrier();
  EXPECT_FALSE(mailbox.take().has_value());
}

TEST(Mailbox, LongAndShortLettersKeepTheirOrderAndBytes) {
  Mailbox mailbox(world(), "sizes");
  const std::vector<std::size_t> sizes = {0, 5'000'000, 1, 70'000};
  const int target = (mailbox.rank() + 1) % mailbox.size();
  for (const std::size_t size : sizes) {
    mailbox.post(target, 0, std::string(size, static_cast<char>('a' + mailbox.rank())));
  }
  const int source = (mailbox.rank() + mailbox.size() - 1) % mailbox.size();
  for (const std::size_t size : sizes) {
    const Letter letter = wait_for_letter(mailbox);
    EXPECT_EQ(letter.source, source);
    EXPECT_EQ(letter.bytes, std::string(size, static_cast<char>('a' + source)));
  }
  mailbox.finish();
}

TEST(Mailbox, PostReturnsAtOnceAndFinishLetsBothSidesGo) {
  Mailbox mailbox(world(), "finish");
  const int other = mailbox.size() - 1 - mailbox.rank();
  mailbox.post(other, 1, std::string(3'000'000, 'x'));  // too long for MPI to send before it is asked for
  mailbox.finish();
  EXPECT_EQ(wait_for_letter(mailbox).bytes.size(), 3'000'000U);
}

TEST(Mailbox, ALongLetterMayBeLeftUntaken) {
  Mailbox mailbox(world(), "left");
  mailbox.post(0, 1, std::string(2'000'000, 'y'));
  world().barrier();
}

TEST(Mailbox, LettersAreNoTrainingTraffic) {
  const auto before = world().traffic().all();
  Mailbox mailbox(world(), "quiet");
  mailbox.post(0, 1, "a");
  if (mailbox.rank() == 0) {
    for (int rank = 0; rank < mailbox.size(); ++rank) {
      wait_for_letter(mailbox);
    }
  }
  mailbox.finish();
  EXPECT_EQ(world().traffic().all(), before);
}

TEST(Mailbox, WorksWithoutMpi) {
  Mailbox mailbox(Communicator{}, "alone");
  EXPECT_EQ(mailbox.rank(), 0);
  EXPECT_EQ(mailbox.size(), 1);
  EXPECT_FALSE(mailbox.take().has_value());
  mailbox.post(0, 7, "one");
  mailbox.post(0, 8, "two");
  const auto first = mailbox.take();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->kind, 7);
  EXPECT_EQ(first->bytes, "one");
  EXPECT_EQ(mailbox.take()->bytes, "two");
  EXPECT_FALSE(mailbox.take().has_value());
  mailbox.finish();
}

TEST(Mailbox, RefusesWrongTargetsAndKinds) {
  Mailbox mailbox(world(), "wrong");
  EXPECT_THROW(mailbox.post(mailbox.size(), 1, ""), base::InternalError);
  EXPECT_THROW(mailbox.post(-1, 1, ""), base::InternalError);
  EXPECT_THROW(mailbox.post(0, 1000, ""), base::InternalError);
  EXPECT_THROW(mailbox.post(0, -1, ""), base::InternalError);
}

}  // namespace
}  // namespace athanor::parallel
