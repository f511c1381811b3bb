#include "train/bench_stream.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"
#include "train/bench_stream/replay_source.hpp"
#include "train/bench_stream/sleeping_barrier.hpp"
#include "train/stream_job.hpp"

namespace athanor::train {
namespace {

using distill::PayloadKind;
using tests::StreamJob;
using tests::world;

// A live source whose steps hold their own number.
class CountingSource final : public distill::SignalSource {
 public:
  const distill::ReceivedStep& wait_step(std::int64_t step, const distill::RowTags&) override {
    ++waits;
    value_ = step;
    step_.step = step;
    step_.fields = {{"n", {1, 1, 1}, 8, {reinterpret_cast<const std::byte*>(&value_), sizeof(value_)}}};
    return step_;
  }
  distill::StepOutcome wait_trailer(std::int64_t) override { return distill::StepOutcome::skipped; }
  void release(std::int64_t) override { ++releases; }
  void progress() override {}
  const distill::SourceStats& stats() const override { return stats_; }

  int waits = 0;
  int releases = 0;

 private:
  std::int64_t value_ = 0;
  distill::ReceivedStep step_;
  distill::SourceStats stats_;
};

std::int64_t number_in(const distill::ReceivedStep& step) {
  std::int64_t number = -1;
  std::memcpy(&number, step.field("n").bytes.data(), sizeof(number));
  return number;
}

TEST(ReplaySource, ServesTheKeptStepWithoutTheLiveOne) {
  auto live = std::make_unique<CountingSource>();
  const CountingSource& counts = *live;
  ReplaySource source(std::move(live));
  EXPECT_THROW(source.replay(true), base::InternalError);
  EXPECT_EQ(number_in(source.wait_step(3, {})), 3);
  source.release(3);
  source.record_next_step();
  EXPECT_EQ(number_in(source.wait_step(4, {})), 4);
  EXPECT_EQ(source.wait_trailer(4), distill::StepOutcome::skipped);
  source.release(4);
  EXPECT_EQ(number_in(source.wait_step(5, {})), 5);  // the live source's memory changes
  source.release(5);
  source.replay(true);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(number_in(source.wait_step(4, {})), 4);
    EXPECT_EQ(source.wait_trailer(4), distill::StepOutcome::finite);
    source.release(4);
  }
  EXPECT_THROW(source.wait_step(5, {}), base::InternalError);
  source.replay(false);
  EXPECT_EQ(number_in(source.wait_step(6, {})), 6);
  EXPECT_EQ(counts.waits, 4);
  EXPECT_EQ(counts.releases, 3);
}

// Seconds of a clock that all processes of a machine share.
double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

TEST(SleepingBarrier, NobodyLeavesBeforeTheLastHasCome) {
  SleepingBarrier barrier(world());
  for (int round = 0; round < 3; ++round) {
    const int late = (world().rank() + round) % world().size();
    std::this_thread::sleep_for(std::chrono::milliseconds(10 * late));
    const at::Tensor times = at::empty({1, 2}, at::kDouble);
    times[0][0] = now_s();
    int looks = 0;
    barrier.wait([&] { ++looks; });
    times[0][1] = now_s();
    const at::Tensor all = parallel::all_gather(times, world(), parallel::Traffic::other);
    EXPECT_GE(all.select(1, 1).min().item<double>(), all.select(1, 0).max().item<double>());
    EXPECT_LE(looks, 1000) << "it does not sleep";
  }
  barrier.finish();
}

void expect_complete(const BenchStreamResult& result, const StreamJob& job) {
  EXPECT_EQ(result.tokens_per_step, job.global_batch * job.seq);
  EXPECT_EQ(result.bytes.sent, result.bytes.formula);
  EXPECT_EQ(result.bytes.received, result.bytes.formula);
  EXPECT_GT(result.bytes.packets, 0);
  ASSERT_EQ(result.rounds.size(), 2u);
  for (const StreamRound& round : result.rounds) {
    EXPECT_GT(round.pair_s, 0.0);
    EXPECT_GT(round.teacher_s, 0.0);
    EXPECT_GT(round.students_s, 0.0);
    EXPECT_GE(round.student_wait, 0.0);
    EXPECT_LE(round.student_wait, 1.0);
    EXPECT_LE(round.teacher_wait, 1.0);
    EXPECT_DOUBLE_EQ(round.ratio_to_sum(), round.pair_s / (round.teacher_s + round.students_s));
  }
  ASSERT_EQ(result.roles.size(), 2u);
  EXPECT_EQ(result.roles[1].name, "student");
  EXPECT_EQ(result.roles[1].ranks, job.student_ranks());
  for (const StreamRole& role : result.roles) {
    EXPECT_GT(role.peak_rss_bytes, 1'000'000);
    EXPECT_GT(role.together.forward_s, 0.0);
    EXPECT_GT(role.alone.total_s, role.alone.forward_s);
  }
}

TEST(BenchStream, CountsTheBytesOfTheFormulaForEachCodec) {
  if (world().size() < 2) {
    return;  // a role needs a rank of its own
  }
  for (const PayloadKind codec :
       {PayloadKind::hidden, PayloadKind::full, PayloadKind::topk, PayloadKind::sampled}) {
    SCOPED_TRACE(std::string(distill::name_of(codec)));
    const StreamJob job{.codec = codec, .teacher_ranks = world().size() / 2};
    expect_complete(job.run(), job);
  }
}

TEST(BenchStream, CountsThemForASplitStudentAndAFrozenTeacher) {
  if (world().size() < 4) {
    return;
  }
  for (const bool frozen : {false, true}) {
    for (const PayloadKind codec : {PayloadKind::hidden, PayloadKind::full, PayloadKind::topk}) {
      SCOPED_TRACE(std::string(distill::name_of(codec)));
      const StreamJob job{
          .codec = codec, .frozen = frozen, .teacher_ranks = 2, .student_tp = 2, .teacher_micro_batch = 4};
      expect_complete(job.run(), job);
    }
  }
}

TEST(BenchStream, AWrongFormulaIsSeen) {
  if (world().size() < 2) {
    return;
  }
  const StreamJob job{.teacher_ranks = world().size() / 2};
  BenchStreamOptions options = job.options();
  options.formula_payload_bytes += 1;
  EXPECT_FALSE(bench_stream(options, world(), job.roles()).bytes.agree());
}

}  // namespace
}  // namespace athanor::train
