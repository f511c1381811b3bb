#include "config/command_line.hpp"

#include <limits>

#include "config/key.hpp"
#include "config/parse.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::expect_refused;
using tests::parse;
using tests::ScratchFolder;

TEST(CommandLine, ReadsCommandFlagsAndValues) {
  const ParsedCommand parsed =
      parse({"train", "--model.layers=7", "--optim.lr", "1e-3", "--json", "--dry-run",
             "--model.tie_embeddings=true", "--moe.balance=switch,bias"});
  EXPECT_EQ(parsed.command, Command::train);
  EXPECT_TRUE(parsed.json);
  EXPECT_TRUE(parsed.dry_run);
  EXPECT_FALSE(parsed.help || parsed.print_config || parsed.version);
  const RoleConfig& role = parsed.config.roles.at(0);
  EXPECT_EQ(role.model.layers, 7);
  EXPECT_EQ(role.optim.lr, 1e-3);
  EXPECT_TRUE(role.model.tie_embeddings);
  EXPECT_EQ(role.model.moe.balance,
            (std::vector<moe::BalanceKind>{moe::BalanceKind::switch_loss, moe::BalanceKind::bias}));
}

TEST(CommandLine, KnowsTheCommandOfTwoWords) {
  EXPECT_EQ(parse({"bench", "step"}).command, Command::bench_step);
  EXPECT_EQ(parse({"bench", "kernels"}).command, Command::bench_kernels);
}

TEST(CommandLine, DefaultsOfTheDesign) {
  const RunConfig config = parse({"generate"}).config;
  EXPECT_EQ(config.generate.max_new_tokens, 256);
  EXPECT_EQ(config.generate.top_k, 50);
  EXPECT_EQ(config.generate.top_p, 1.0);
  EXPECT_EQ(config.generate.temperature, 1.0);
  EXPECT_EQ(config.generate.repetition_penalty, 1.2);
  EXPECT_EQ(config.generate.length_penalty, 0.8);
  EXPECT_EQ(config.generate.beams, 1);
  EXPECT_EQ(config.roles.at(0).model.moe.balance, std::vector<moe::BalanceKind>{moe::BalanceKind::squared});
  EXPECT_EQ(config.roles.at(0).optim.zero, 1);
  EXPECT_EQ(config.roles.at(0).batch_micro, 0);
}

TEST(CommandLine, TheCommandLineWinsOverTheFile) {
  const ScratchFolder scratch;
  const std::string path = scratch.write("run.ini", "[model]\nlayers = 3\nhidden = 64\n");
  const RunConfig config = parse({"train", "--model.layers=5", "--config=" + path}).config;
  EXPECT_EQ(config.roles.at(0).model.layers, 5);
  EXPECT_EQ(config.roles.at(0).model.hidden, 64);
}

TEST(CommandLine, HelpAndVersionNeedNoCommand) {
  EXPECT_TRUE(parse({"--help"}).help);
  EXPECT_TRUE(parse({"--version"}).version);
  EXPECT_TRUE(parse({"train", "--help"}).help);
}

TEST(CommandLine, RefusesUnknownCommands) {
  expect_refused({}, {"no command", "tokenize, train, distill, evaluate, generate, bench step"});
  expect_refused({"trian"}, {"unknown command trian", "did you mean train?"});
  expect_refused({"checkpoint", "lst"}, {"checkpoint lst", "there is none", "checkpoint list"});
  expect_refused({"checkpoint"}, {"its second word is missing", "checkpoint verify"});
  expect_refused({"report", "runs/a"}, {"report", "not in version"});
  expect_refused({"bench"}, {"bench", "missing", "bench step, bench checkpoint"});
  expect_refused({"bench", "network"}, {"bench network", "there is none", "bench step"});
  expect_refused({"train", "run.ini"}, {"unexpected argument run.ini"});
}

TEST(CommandLine, RefusesUnknownOptionsWithTheNearestKey) {
  expect_refused({"train", "--model.layer=4"}, {"--model.layer", "did you mean --model.layers?"});
  expect_refused({"train", "--layers=4"}, {"did you mean --model.layers?"});
  expect_refused({"train", "--teacher.model.hiden=4"}, {"did you mean --teacher.model.hidden?"});
  expect_refused({"train", "--dryrun"}, {"did you mean --dry-run?"});
  expect_refused({"train", "--qqqqqqqqqqqqqqqq=1"}, {"--qqqqqqqqqqqqqqqq", "--help"});
}

TEST(CommandLine, TakesExactNamesOnly) {
  expect_refused({"train", "--model.lay=4"}, {"unknown option --model.lay"});
  expect_refused({"train", "--hel"}, {"unknown option --hel"});
  expect_refused({"train", "-h"}, {"unexpected argument -h", "--help"});
}

TEST(CommandLine, RefusesStrayWordsAndMissingValues) {
  expect_refused({"train", "--json", "extra"}, {"unexpected argument extra"});
  expect_refused({"train", "--model.layers"}, {"--model.layers", "value"});
  expect_refused({"train", "--model.layers", "--json"}, {"--model.layers"});
  expect_refused({"train", "--json=true"}, {"--json", "takes no value"});
}

TEST(CommandLine, RefusesRepeatedOptions) {
  expect_refused({"train", "--model.layers=4", "--model.layers=5"}, {"--model.layers", "repeated", "4", "5"});
  expect_refused({"train", "--json", "--json"}, {"--json", "repeated"});
  expect_refused({"train", "--config=a", "--config=b"}, {"--config", "repeated"});
}

TEST(CommandLine, RefusesMalformedValues) {
  const auto refused = [](const std::string& option, const std::vector<std::string>& parts) {
    expect_refused({"train", option}, parts);
  };
  refused("--model.layers=abc", {"--model.layers=abc", "not an integer", ">= 1"});
  refused("--model.layers=", {"--model.layers"});
  refused("--model.layers=4.5", {"--model.layers=4.5", "not an integer"});
  refused("--model.layers=1e3", {"not an integer"});
  refused("--model.layers=0", {"--model.layers=0", "out of range", ">= 1"});
  refused("--model.layers=99999999999999999999", {"too large"});
  refused("--parallel.tp=4294967297", {"too large"});
  refused("--run.seed=-1", {"--run.seed=-1", "not an integer"});
  refused("--optim.lr=fast", {"--optim.lr=fast", "not a number", "> 0"});
  refused("--optim.lr=0.1x", {"not a number"});
  refused("--optim.lr=nan", {"--optim.lr=nan", "not finite"});
  refused("--optim.lr=inf", {"not finite"});
  refused("--optim.lr=-1", {"out of range", "> 0"});
  refused("--optim.beta1=1", {"--optim.beta1=1", "in [0, 1)"});
  refused("--optim.beta2=-0.1", {"in [0, 1)"});
  refused("--optim.zero=2", {"--optim.zero=2", "in [0, 1]"});
  refused("--model.dropout=1", {"--model.dropout=1", "in [0, 1)"});
  refused("--model.tie_embeddings=yes", {"--model.tie_embeddings=yes", "true, false"});
  refused("--precision.compute=fp32", {"--precision.compute=fp32", "f32, bf16, fp16, f64"});
  refused("--optim.schedule=step", {"constant, linear, cosine, wsd"});
  refused("--moe.score=relu", {"softmax, sigmoid"});
  refused("--moe.balance=squared,foo", {"'foo'", "squared, switch, sequence, bias"});
  refused("--moe.balance=", {"''", "none"});
  refused("--moe.balance=bias,bias", {"'bias'", "twice"});
  refused("--moe.balance=none,bias", {"'none'"});
  refused("--run.device=gpu", {"cpu, cuda"});
}

TEST(CommandLine, NegativeNumbersAreValuesNotOptions) {
  EXPECT_EQ(parse({"generate", "--generate.length_penalty", "-0.5"}).config.generate.length_penalty, -0.5);
}

TEST(CommandLine, AnEmptyValueClearsText) {
  const ScratchFolder scratch;
  const std::string path = scratch.write("run.ini", "[data]\nvalid = a\n");
  EXPECT_EQ(parse({"train", "--config=" + path, "--data.valid=", "--json"}).config.data.valid, "");
}

TEST(CommandLine, FullHasASynonym) {
  EXPECT_EQ(parse({"train", "--precision.grad_comm=f32"}).config.roles.at(0).precision.grad_comm,
            base::WireType::full);
}

TEST(CommandLine, RefusesKeysThatTheCommandDoesNotUse) {
  expect_refused({"train", "--generate.top_k=3"},
                 {"--generate.top_k=3", "train does not use it", "generate"});
  expect_refused({"generate", "--checkpoint=x", "--model.layers=3"},
                 {"--model.layers=3", "comes from the checkpoint"});
  expect_refused({"train", "--input=x"}, {"--input=x", "only tokenize"});
  expect_refused({"tokenize", "--batch.seq=3"}, {"tokenize does not use it"});
  expect_refused({"train", "--moe.force_uniform=true"}, {"only bench step"});
}

TEST(ConfigFile, MayHoldSectionsTheCommandDoesNotUse) {
  const ScratchFolder scratch;
  const std::string path = scratch.write("run.ini", "[generate]\ntop_k=3\n[model]\nlayers=3\n");
  const RunConfig config = parse({"train", "--config", path}).config;
  EXPECT_EQ(config.roles.at(0).model.layers, 3);
  EXPECT_EQ(config.generate.top_k, 50);
}

TEST(ConfigFile, RefusesTyposWithFileLineAndNearestKey) {
  const ScratchFolder scratch;
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    expect_refused({"train", "--config=" + scratch.write("run.ini", text)}, parts);
  };
  refused("[model]\nlayer = 4\n", {"run.ini:2", "model.layer", "did you mean model.layers?"});
  refused("[modle]\n\nlayers = 4\n", {"run.ini:3", "did you mean model.layers?"});
  refused("[model]\nlayers = four\n", {"run.ini:2", "model.layers=four", "not an integer"});
  refused("[generate]\ntop_k = x\n",
          {"run.ini:2", "generate.top_k=x"});  // checked although train does not use it
  refused("json = true\n", {"run.ini:1", "json"});
}

TEST(Roles, APrefixOverridesWhereverItIsWritten) {
  const ScratchFolder scratch;
  const std::string path =
      scratch.write("run.ini", "[teacher.model]\nlayers = 3\n[model]\nlayers = 2\nhidden = 64\n");
  EXPECT_EQ(parse({"train", "--config=" + path}).config.roles.at(0).model.layers, 3);
  EXPECT_EQ(parse({"train", "--config=" + path, "--model.layers=9"}).config.roles.at(0).model.layers, 3);
  EXPECT_EQ(parse({"train", "--config=" + path, "--teacher.model.layers=9"}).config.roles.at(0).model.layers,
            9);
  EXPECT_EQ(parse({"train", "--teacher.batch.micro=2", "--teacher.ranks=4"}).config.roles.at(0).ranks, 4);
}

TEST(Roles, RefusesPrefixesThatMeanNothing) {
  const ScratchFolder scratch;
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    expect_refused({"train", "--config=" + scratch.write("run.ini", text)}, parts);
  };
  refused("[teacher.run]\ndir = x\n", {"run.dir", "whole run"});
  refused("[studnt.model]\nlayers = 2\n", {"studnt.model.layers", "student.model.layers"});
  expect_refused({"train", "--student.model.layers=2"}, {"--student.model.layers"});
}

TEST(PrintConfig, ReadsBackExactly) {
  const ScratchFolder scratch;
  std::vector<std::vector<std::string>> cases;
  for (const char* name : {"bench-s.ini", "quickstart.ini", "tiny.ini"}) {
    const std::string path = (tests::source_folder() / "configs" / name).string();
    for (const char* command : {"train", "tokenize", "evaluate", "generate"}) {
      cases.push_back({command, "--config=" + path});
    }
    cases.push_back({"bench", "step", "--config=" + path});
  }
  cases.push_back({"train", "--optim.lr=0.1", "--optim.eps=4.9406564584124654e-324",
                   "--model.rope_theta=1e300", "--optim.min_lr=0.1000000000000000055",
                   "--run.dir= odd # name", "--moe.balance=none", "--run.seed=18446744073709551615"});
  cases.push_back(
      {"generate", "--generate.prompt=a \"b\" # c\n\td\\", "--generate.top_p=0.30000000000000004"});
  cases.push_back({"train", "--teacher.model.layers=9", "--ranks=2"});
  for (const std::vector<std::string>& words : cases) {
    const RunConfig config = parse(words).config;
    const std::string text = to_ini(config);
    std::vector<std::string> again(words.begin(), words.begin() + (words[0] == "bench" ? 2 : 1));
    again.push_back("--config=" + scratch.write("printed.ini", text));
    if (words[0] == "evaluate" || words[0] == "generate") {
      // What comes from the checkpoint is printed too, but is only read as a checkpoint's.
      const std::vector<Setting> printed = read_ini(scratch.path("printed.ini"));
      EXPECT_EQ(to_ini(resolve_with_base(config.command, printed, printed)), text);
      continue;
    }
    EXPECT_EQ(to_ini(parse(again).config), text) << words[0];
    EXPECT_EQ(first_difference(to_ini(parse(again).config), text), "");
  }
}

TEST(PrintConfig, HoldsEveryKeyOfTheCommand) {
  const std::string text = to_ini(parse({"train"}).config);
  for (const char* line : {"[run]", "dir = runs/default", "[moe]", "balance = squared", "lr = 0.0003",
                           "eps = 1e-08", "compute = f32", "reset_attention = false"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line;
  }
  EXPECT_EQ(text.find("[generate]"), std::string::npos);
}

TEST(PrintConfig, NamesTheFirstDifference) {
  const std::string a = to_ini(parse({"train", "--optim.lr=0.1", "--train.steps=7"}).config);
  const std::string b = to_ini(parse({"train", "--optim.lr=0.2"}).config);
  EXPECT_EQ(first_difference(a, b), "optim.lr (0.1 and 0.2)");
  EXPECT_EQ(first_difference(a, a), "");
}

TEST(Base, GivesTheModelAndDataButNotTheLayout) {
  const ScratchFolder scratch;
  const std::vector<Setting> base =
      read_ini(scratch.write("config.ini",
                             "[model]\nlayers=7\n[parallel]\nep=4\n[batch]\nseq=99\nmicro=3\n[data]\nvalid="
                             "a\n[precision]\ncompute=bf16\n"));
  const std::string own = scratch.write("own.ini", "[model]\nlayers=2\n[data]\nvalid=b\n");
  const ParsedCommand parsed =
      parse({"evaluate", "--checkpoint=x", "--config=" + own, "--precision.compute=f32"});
  const RunConfig config = resolve_with_base(Command::evaluate, base, parsed.settings);
  EXPECT_EQ(config.roles.at(0).model.layers, 7);
  EXPECT_EQ(config.batch.seq, 99);
  EXPECT_EQ(config.data.valid, "b");
  EXPECT_EQ(config.roles.at(0).precision.compute, base::ComputeType::f32);
  EXPECT_EQ(config.roles.at(0).parallel.ep, 1);
  EXPECT_EQ(config.roles.at(0).batch_micro, 0);
  EXPECT_EQ(config.source.checkpoint, "x");
}

}  // namespace
}  // namespace athanor::config
