#include "config/validate.hpp"

#include <limits>

#include "config/parse.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

// A configuration that every rank count of the tests can run.
std::vector<std::string> good_train() {
  return {"train", "--data.train=corpus/a", "--model.vocab_size=512", "--batch.global=24"};
}

// `more` replaces what `words` says of the same key.
RunConfig with(std::vector<std::string> words, const std::vector<std::string>& more) {
  for (const std::string& option : more) {
    std::erase_if(words, [key = option.substr(0, option.find('=') + 1)](const auto& word) {
      return word.starts_with(key);
    });
    words.push_back(option);
  }
  return parse(words).config;
}

void refused(const std::vector<std::string>& more, int world_size, const std::vector<std::string>& parts) {
  const RunConfig config = with(good_train(), more);
  expect_error([&] { validate(config, world_size); }, base::ExitCode::usage, parts);
}

TEST(Validate, AcceptsLegalLayouts) {
  for (const int ranks : {1, 2, 3, 4, 6, 8}) {
    EXPECT_NO_THROW(validate(with(good_train(), {}), ranks)) << ranks;
  }
  EXPECT_NO_THROW(validate(with(good_train(), {"--parallel.tp=2", "--parallel.ep=8"}), 8));
  EXPECT_NO_THROW(validate(with(good_train(), {"--parallel.tp=8"}), 8));  // tp = 2 * kv_heads
  EXPECT_NO_THROW(validate(with(good_train(), {"--batch.micro=3", "--parallel.ep=2"}), 4));
  EXPECT_NO_THROW(validate(with(good_train(), {"--moe.experts=0"}), 2));
  EXPECT_NO_THROW(
      validate(with(good_train(), {"--moe.experts=4", "--moe.top_k=4"}), 8));  // more ranks than experts
}

TEST(Validate, ResolvesTheLayout) {
  const RunConfig config = with(good_train(), {"--parallel.tp=2", "--parallel.ep=4"});
  const parallel::ParallelDims dims = resolve_dims(config.roles.at(0), 8);
  EXPECT_EQ(dims.dp, 4);
  EXPECT_EQ(dims.tp, 2);
  EXPECT_EQ(dims.ep, 4);
  EXPECT_EQ(resolve_micro_batch(config, config.roles.at(0), dims), 6);
}

TEST(Validate, RefusesLayoutsThatDoNotDivide) {
  refused({"--parallel.ep=3"}, 4, {"parallel.ep=3", "dp * tp = 4 * 1 = 4", "divisor"});
  refused({"--parallel.tp=3"}, 4, {"parallel.tp=3", "4 ranks"});
  refused({"--parallel.ep=3", "--moe.experts=128"}, 3, {"parallel.ep=3", "moe.experts=128"});
  refused({"--parallel.ep=8", "--moe.experts=4", "--moe.top_k=2"}, 8, {"parallel.ep=8", "moe.experts=4"});
  refused({"--parallel.tp=3", "--model.heads=8"}, 3, {"parallel.tp=3", "model.heads=8"});
  refused({"--parallel.tp=2", "--model.heads=6", "--model.kv_heads=3", "--model.hidden=48"}, 2,
          {"parallel.tp=2", "model.kv_heads=3"});
  refused({"--parallel.ep=2", "--moe.experts=0"}, 2, {"parallel.ep=2", "moe.experts=0", "dense"});
  refused({"--teacher.ranks=3"}, 4, {"teacher.ranks=3", "4 ranks"});
}

TEST(Validate, RefusesShapesThatDoNotExist) {
  refused({"--model.kv_heads=3"}, 1, {"model.kv_heads=3", "model.heads=8"});
  refused({"--model.hidden=100"}, 1, {"model.heads=8", "model.hidden=100"});
  refused({"--model.head_dim=7"}, 1, {"model.head_dim=7", "even"});
  refused({"--model.vocab_size=0"}, 1, {"model.vocab_size=0", "data.tokenizer"});
}

TEST(Validate, RefusesRoutingThatCannotBe) {
  refused({"--moe.top_k=129"}, 1, {"moe.top_k=129", "moe.experts=128"});
  refused({"--moe.groups=7"}, 1, {"moe.groups=7", "moe.experts=128"});
  refused({"--moe.groups=8", "--moe.group_top_k=9"}, 1, {"moe.group_top_k=9", "moe.groups=8"});
  refused({"--moe.groups=64", "--moe.group_top_k=1"}, 1, {"moe.top_k=4", "moe.group_top_k=1", "2 experts"});
  refused({"--moe.every=5"}, 1, {"moe.every=5", "model.layers=4"});
}

TEST(Validate, RefusesBatchesThatDoNotDivide) {
  refused({"--batch.global=25"}, 2, {"batch.global=25", "dp=2"});
  refused({"--batch.micro=5"}, 2, {"batch.micro=5", "12"});
  refused({"--batch.seq=4096"}, 1, {"batch.seq=4096", "model.max_seq=2048"});
}

TEST(Validate, RefusesGuardsThatCannotWork) {
  EXPECT_NO_THROW(validate(with(good_train(), {"--guard.action=rollback", "--guard.min_steps=128"}), 1));
  refused({"--guard.min_steps=129"}, 1, {"guard.min_steps=129", "guard.window=128"});
  refused({"--guard.action=rollback", "--checkpoint.every=0"}, 1,
          {"guard.action=rollback", "checkpoint.every=0"});
}

TEST(Validate, RefusesWhatThisVersionDoesNotDo) {
  for (const char* wire : {"bf16", "fp8"}) {
    const std::string grad = std::string("--precision.grad_comm=") + wire;
    const std::string dispatch = std::string("--precision.dispatch_comm=") + wire;
    EXPECT_NO_THROW(validate(with(good_train(), {grad, dispatch, "--precision.combine_comm=bf16"}), 1));
    refused({grad, "--optim.zero=0"}, 1, {"precision.grad_comm=" + std::string(wire), "optim.zero=1"});
    refused({grad, "--precision.compute=f64"}, 1, {"precision.grad_comm", "precision.compute=f64"});
    refused({dispatch, "--precision.compute=f64"}, 1, {"precision.dispatch_comm", "precision.compute=f64"});
  }
  refused({"--precision.combine_comm=fp8"}, 1, {"precision.combine_comm=fp8", "full or bf16"});
  refused({"--precision.combine_comm=bf16", "--precision.compute=f64"}, 1, {"precision.compute=f64"});
  refused({"--precision.combine_comm=bf16", "--precision.compute=fp16"}, 1, {"precision.compute=fp16"});
  refused({"--precision.error_feedback=true"}, 1, {"precision.error_feedback=true", "precision.grad_comm"});
}

TEST(Validate, RefusesSchedulesThatContradict) {
  refused({"--optim.min_lr=0.1"}, 1, {"optim.min_lr=0.1", "optim.lr=0.0003"});
  refused({"--optim.warmup_steps=101"}, 1, {"optim.warmup_steps=101", "train.steps=100"});
}

TEST(Validate, RefusesAJobThatEndsBeforeAnybodyIsToldWhy) {
  refused({"--watchdog.hard_factor=0.5"}, 1, {"watchdog.hard_factor=0.5", "1 or more"});
  tests::expect_refused({"train", "--watchdog.step_s=-1"}, {"watchdog.step_s=-1"});
  tests::expect_refused({"train", "--watchdog.straggler_score=1.5"}, {"watchdog.straggler_score=1.5"});
  EXPECT_NO_THROW(validate(with(good_train(), {"--watchdog.hard_factor=0", "--watchdog.step_s=0"}), 1));
}

TEST(Validate, RefusesMissingData) {
  const RunConfig none = parse({"train", "--model.vocab_size=512"}).config;
  expect_error([&] { validate(none, 1); }, base::ExitCode::usage, {"data.train is empty"});
  refused({"--train.eval_every=5"}, 1, {"train.eval_every=5", "data.valid"});
  const RunConfig bad = parse({"train", "--model.vocab_size=512", "--data.train=a:-1"}).config;
  expect_error([&] { validate(bad, 1); }, base::ExitCode::usage, {"a:-1"});
}

TEST(Validate, RefusesNumbersThatCodeSet) {
  const auto refused_value = [](auto change, const std::vector<std::string>& parts) {
    RunConfig config = with(good_train(), {});
    change(config);
    expect_error([&] { validate(config, 1); }, base::ExitCode::usage, parts);
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  refused_value([&](RunConfig& config) { config.roles[0].optim.lr = nan; }, {"optim.lr=nan", "not finite"});
  refused_value([&](RunConfig& config) { config.roles[0].model.dropout = -0.1; },
                {"model.dropout=-0.1", "[0, 1)"});
  refused_value([&](RunConfig& config) { config.roles[0].model.moe.z_weight = -1; }, {"moe.z_weight=-1"});
  refused_value([&](RunConfig& config) { config.batch.global = 0; }, {"batch.global=0"});
  refused_value([&](RunConfig& config) { config.roles[0].model.moe.force_uniform = true; },
                {"moe.force_uniform"});
}

TEST(Validate, ChecksTheOtherCommands) {
  const auto refused_command = [](const std::vector<std::string>& words, int ranks,
                                  const std::vector<std::string>& parts) {
    const RunConfig config = parse(words).config;
    expect_error([&] { validate(config, ranks); }, base::ExitCode::usage, parts);
  };
  refused_command({"tokenize", "--output=x"}, 1, {"--input"});
  refused_command({"tokenize", "--input=x"}, 1, {"--output"});
  refused_command({"tokenize", "--input=x", "--output=y"}, 2, {"2 ranks"});
  refused_command({"evaluate"}, 1, {"--checkpoint is missing"});
  refused_command({"generate"}, 1, {"--checkpoint is missing"});
  refused_command({"evaluate", "--checkpoint=x"}, 1, {"data.valid"});
  EXPECT_NO_THROW(validate(parse({"tokenize", "--input=x", "--output=y"}).config, 1));
  EXPECT_NO_THROW(
      validate(parse({"bench", "step", "--model.vocab_size=64", "--moe.force_uniform=true"}).config, 1));
}

}  // namespace
}  // namespace athanor::config
