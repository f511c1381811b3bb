// Refusals of train.trace*, moe.dispatch_chunks and bench step's routing.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

void refused(const std::vector<std::string>& words, int world_size, const std::vector<std::string>& parts) {
  const RunConfig config = parse(words).config;
  expect_error([&] { validate(config, world_size); }, base::ExitCode::usage, parts);
}

std::vector<std::string> train(std::vector<std::string> more) {
  more.insert(more.begin(), {"train", "--data.train=corpus/a", "--model.vocab_size=512", "--batch.global=24",
                             "--optim.warmup_steps=0", "--train.steps=10"});
  return more;
}

std::vector<std::string> bench(std::vector<std::string> more) {
  more.insert(more.begin(), {"bench", "step", "--model.vocab_size=512", "--batch.global=24"});
  return more;
}

TEST(TraceKeys, AreRefusedBeyondTheJob) {
  EXPECT_NO_THROW(validate(parse(train({"--train.trace=10", "--train.trace_from=1"})).config, 2));
  refused(train({"--train.trace=11"}), 2, {"train.trace=11", "train.steps=10"});
  refused(train({"--train.trace=1", "--train.trace_from=11"}), 2, {"train.trace_from=11", "train.steps=10"});
  refused(train({"--train.trace_from=3"}), 2, {"train.trace_from=3", "train.trace=0"});
}

TEST(DispatchChunks, AreAtMostTheExpertsOfARank) {
  EXPECT_NO_THROW(
      validate(parse(train({"--moe.experts=8", "--parallel.ep=2", "--moe.dispatch_chunks=4"})).config, 2));
  refused(train({"--moe.experts=8", "--parallel.ep=2", "--moe.dispatch_chunks=5"}), 2,
          {"moe.dispatch_chunks", "5", "1 to 4"});
}

TEST(BenchRouting, NeedsExpertsAndOneMeaning) {
  EXPECT_NO_THROW(validate(parse(bench({"--bench.worst_routing=true"})).config, 2));
  refused(bench({"--bench.worst_routing=true", "--bench.compare_balanced=true"}), 2,
          {"bench.worst_routing", "bench.compare_balanced"});
  refused(bench({"--bench.worst_routing=true", "--moe.experts=0"}), 2,
          {"bench.worst_routing", "moe.experts=0"});
  refused(bench({"--bench.compare_balanced=true", "--moe.experts=0"}), 2,
          {"bench.compare_balanced", "moe.experts=0"});
}

}  // namespace
}  // namespace athanor::config
