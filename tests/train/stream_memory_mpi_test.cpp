// Whole steps of teacher and student over the link hold no [tokens, vocabulary] either.
#include <gtest/gtest.h>

#include <string>

#include "support/mpi_test.hpp"
#include "support/peak_memory.hpp"
#include "train/stream_job.hpp"

namespace athanor::train {
namespace {

using distill::PayloadKind;
using tests::world;

// Tensors of this rank at their peak, from the making of the model to the last step. Chunks of 512 tokens are
// half of the fewest here.
double peak_bytes(PayloadKind codec, std::int64_t tokens, std::int64_t vocab) {
  tests::StreamJob job{.codec = codec, .teacher_ranks = world().size() / 2};
  const std::int64_t rows = world().size() / 2;
  job.global_batch = rows * tokens / 128;
  job.teacher_micro_batch = job.student_micro_batch = tokens / 128;
  job.seq = 128;
  job.vocab = vocab;
  job.warmup_steps = 0;
  job.window = job.rounds = job.steps_per_round = 1;
  const BenchStreamOptions options = job.options();
  const parallel::RoleSplit roles = job.roles();
  return static_cast<double>(tests::peak_bytes_of([&] { bench_stream(options, world(), roles); }));
}

TEST(StreamMemory, OfTokensTimesVocabularyIsOnlyThePayload) {
  if (world().size() < 2) {
    return;  // a role needs a rank of its own
  }
  constexpr std::int64_t few = 1024, many = 2048, small = 128, large = 512;
  for (const PayloadKind codec :
       {PayloadKind::hidden, PayloadKind::topk, PayloadKind::sampled, PayloadKind::full}) {
    SCOPED_TRACE(std::string(distill::name_of(codec)));
    const double mixed = peak_bytes(codec, many, large) - peak_bytes(codec, many, small) -
                         peak_bytes(codec, few, large) + peak_bytes(codec, few, small);
    const double matrices = mixed / (4.0 * (many - few) * (large - small));
    if (codec == PayloadKind::full && world().rank() < world().size() / 2) {
      EXPECT_GE(matrices, 0.9) << "the measure does not see the payload";
      EXPECT_LE(matrices, 2.1);  // in chunks, and joined
    } else {
      EXPECT_LE(matrices, 0.1);
    }
  }
}

}  // namespace
}  // namespace athanor::train
