// The built program from outside: exit codes, streams and messages.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "config/help.hpp"
#include "config/parse.hpp"
#include "support/program.hpp"

namespace athanor::config {
namespace {

using tests::on_ranks;
using tests::Outcome;
using tests::program;
using tests::ScratchFolder;

// Runs the shell command `before` + athanor + `arguments`.
Outcome run(const std::string& arguments, const std::string& before = "") {
  const ScratchFolder scratch;
  return tests::run_program(scratch.path("."), arguments, before);
}

int count(const std::string& text, const std::string& part) {
  int found = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

std::string tiny() {
  return "--config=" + (tests::source_folder() / "configs" / "tiny.ini").string();
}

TEST(Program, Exists) {
  ASSERT_TRUE(std::filesystem::exists(program())) << program() << ": build the target athanor";
}

TEST(Program, PrintsVersionHelpAndDocumentation) {
  const Outcome version_text = run("--version");
  EXPECT_EQ(version_text.exit_code, 0) << version_text.err;
  EXPECT_EQ(version_text.out, fmt::format("athanor {}\n", version));
  EXPECT_EQ(run("train --help").out, command_help(Command::train));
  EXPECT_EQ(run("--dump-docs").out, documentation());
}

TEST(Program, PrintConfigIsLoadable) {
  const ScratchFolder scratch;
  const Outcome first = run("train --print-config --optim.lr=0.123 " + tiny());
  EXPECT_EQ(first.exit_code, 0) << first.err;
  const std::string path = scratch.write("printed.ini", first.out);
  EXPECT_EQ(run("train --print-config --config=" + path).out, first.out);
}

TEST(Program, RefusesBadOptionsWith64) {
  const Outcome typo = run("train --model.layer=3");
  EXPECT_EQ(typo.exit_code, 64);
  EXPECT_NE(typo.err.find("athanor: error: unknown option --model.layer"), std::string::npos) << typo.err;
  EXPECT_EQ(typo.out, "");
  EXPECT_EQ(run("").exit_code, 64);
  EXPECT_EQ(run("train " + tiny()).exit_code, 64);  // no data
}

TEST(Program, MissingFilesAre66) {
  EXPECT_EQ(run("train --config=/nowhere.ini").exit_code, 66);
  EXPECT_EQ(run("evaluate --checkpoint=/nowhere --data.valid=x").exit_code, 66);
  EXPECT_EQ(run("tokenize --input=/nowhere.txt --output=/tmp/never").exit_code, 66);
  const ScratchFolder scratch;
  EXPECT_EQ(
      run("train --data.train=/nowhere/tokens " + tiny() + " --run.dir=" + scratch.path("run")).exit_code,
      66);
  EXPECT_FALSE(std::filesystem::exists(scratch.path("run") + "/config.ini"));
}

TEST(Program, DryRunPrintsThePlanAndDoesNothing) {
  const Outcome text =
      run("bench step --dry-run --teacher.ranks=8 --parallel.ep=4 --parallel.tp=2 " + tiny());
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_NE(text.out.find("8 ranks = dp 4 x tp 2, ep 4"), std::string::npos) << text.out;
  const Outcome json = run("bench step --dry-run --json " + tiny());
  EXPECT_EQ(nlohmann::json::parse(json.out).at("teacher").at("ranks"), 1);
}

TEST(Program, DryRunPrintsTheGridsOfAllRoles) {
  const std::string pair =
      "distill --dry-run --data.train=x --teacher.ranks=4 --teacher.parallel.ep=2 --student.moe.experts=0 "
      "--batch.global=12 " +
      tiny();
  const Outcome text = run(pair + " --student.ranks=3");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  for (const char* part :
       {"teacher: 4 ranks = dp 4 x tp 1, ep 2", "student: 3 ranks = dp 3", "signals: at most"}) {
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  }
  const Outcome wrong = run("distill --dry-run --data.train=x --teacher.ranks=2 " + tiny(), on_ranks(2));
  EXPECT_EQ(wrong.exit_code, 64);
  EXPECT_NE(wrong.err.find("leaves none for student.ranks"), std::string::npos) << wrong.err;
}

TEST(Program, RefusesAModelLargerThanTheMemory) {
  const Outcome outcome =
      run("bench step --model.vocab_size=1000 --model.layers=1000 --model.hidden=4096 --moe.ffn=4096");
  EXPECT_EQ(outcome.exit_code, 64) << outcome.err;
  EXPECT_NE(outcome.err.find("no memory for the model"), std::string::npos) << outcome.err;
}

TEST(Program, SaysAnErrorOfAllRanksOnce) {
  const Outcome outcome = run("bench step --parallel.ep=3 " + tiny(), on_ranks(2));
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_EQ(count(outcome.err, "athanor: error: parallel.ep=3"), 1) << outcome.err;
}

TEST(Program, RefusesDifferentConfigurationsOnDifferentRanks) {
  const std::string script = fmt::format(
      "sh -c '{} bench step {} --optim.lr=0.0$((OMPI_COMM_WORLD_RANK + 1)) --optim.min_lr=0 --dry-run'",
      program().string(), tiny());
  const ScratchFolder scratch;
  const std::string command = fmt::format("{} {} 2>{}", on_ranks(2), script, scratch.path("err"));
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 64);
  const std::string err = tests::read_file(scratch.path("err"));
  EXPECT_EQ(count(err, "optim.lr (0.01 and 0.02) on ranks 0 and 1"), 1) << err;
}

TEST(Program, AnErrorOfOneRankNamesIt) {
  const std::string script =
      fmt::format("sh -c '{} bench step {} --model.layers=$((OMPI_COMM_WORLD_RANK * -1 + 1)) --dry-run'",
                  program().string(), tiny());
  const ScratchFolder scratch;
  const std::string command = fmt::format("{} {} 2>{}", on_ranks(2), script, scratch.path("err"));
  const int status = std::system(command.c_str());
  EXPECT_EQ(WEXITSTATUS(status), 64);
  EXPECT_EQ(count(tests::read_file(scratch.path("err")), "athanor: error: rank 1: --model.layers=0"), 1);
}

// A corpus small enough to train on in a second: returns options that use it.
std::string make_corpus(const ScratchFolder& scratch) {
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += fmt::format("The {} number {} is followed by {}, and {} comes after that.\n\n",
                        i % 2 == 0 ? "even" : "odd", i, i + 1, i * i);
  }
  const Outcome made =
      run(fmt::format("tokenize --input={} --output={} --tokenize.vocab_size=320 --tokenize.held_out=0.2",
                      scratch.write("text.txt", text), scratch.path("tok")));
  EXPECT_EQ(made.exit_code, 0) << made.err;
  return fmt::format("--data.train={0}-train --data.valid={0}-valid --data.tokenizer={0}.model --run.dir={1}",
                     scratch.path("tok"), scratch.path("run"));
}

TEST(Program, TokenizesTrainsEvaluatesAndGenerates) {
  const ScratchFolder scratch;
  const std::string data = make_corpus(scratch);
  const std::string train = "train --json --parallel.ep=2 " + tiny() + " " + data;
  const Outcome trained = run(train, on_ranks(2));
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  const nlohmann::json result = nlohmann::json::parse(trained.out);
  EXPECT_EQ(result.at("steps"), 20);
  EXPECT_LT(result.at("last_loss"), result.at("first_loss"));
  const double loss = result.at("evaluation").at("tok-valid").at("loss");

  // Another layout than the training's, and files found from the checkpoint alone.
  const Outcome evaluated = run("evaluate --json --checkpoint=" + scratch.path("run"));
  ASSERT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_NEAR(nlohmann::json::parse(evaluated.out).at("loss"), loss, 1e-5);

  const Outcome generated =
      run("generate --json --generate.max_new_tokens=5 --generate.prompt=The --checkpoint=" +
          scratch.path("run"));
  ASSERT_EQ(generated.exit_code, 0) << generated.err;
  EXPECT_TRUE(nlohmann::json::parse(generated.out).at("text").get<std::string>().starts_with("The"));
  EXPECT_GT(nlohmann::json::parse(generated.out).at("seconds"), 0.0);

  const Outcome again = run(train);
  EXPECT_EQ(again.exit_code, 64) << again.err;  // ep=2 on one rank
  const Outcome finished = run("train --json " + tiny() + " " + data);
  ASSERT_EQ(finished.exit_code, 0) << finished.err;  // goes on from its end: nothing is left, nothing is lost
  EXPECT_EQ(nlohmann::json::parse(finished.out).at("steps"), 0);
  EXPECT_EQ(nlohmann::json::parse(finished.out).at("first_step"), 20);
  EXPECT_EQ(run("train --run.resume=never " + tiny() + " " + data).exit_code, 73);
  EXPECT_EQ(
      run("generate --dry-run --generate.beams=2 --generate.top_p=0.5 --checkpoint=" + scratch.path("run"))
          .exit_code,
      64);
}

TEST(Program, RefusesDataThatDoesNotFitTheModel) {
  const ScratchFolder scratch;
  const std::string data = make_corpus(scratch);
  const Outcome small = run("train --model.vocab_size=100 " + tiny() + " " + data);
  EXPECT_EQ(small.exit_code, 64);
  EXPECT_NE(small.err.find("model.vocab_size=100"), std::string::npos) << small.err;
  const Outcome ids = run("train --model.vocab_size=100 --data.tokenizer= " + tiny() +
                          " --data.train=" + scratch.path("tok-train") + " --run.dir=" + scratch.path("run"));
  EXPECT_EQ(ids.exit_code, 65) << ids.err;
  const Outcome batch = run("train --batch.global=100000 " + tiny() + " " + data);
  EXPECT_EQ(batch.exit_code, 65) << batch.err;
}

TEST(Program, ARankThatFailsAloneEndsTheJob) {
  const ScratchFolder scratch;
  make_corpus(scratch);
  // Each rank works in a folder of its own; only rank 0's has the token files.
  std::filesystem::create_directory(scratch.path("0"));
  std::filesystem::create_directory(scratch.path("1"));
  for (const char* suffix : {".bin", ".idx"}) {
    std::filesystem::copy(scratch.path("tok-train") + suffix, scratch.path("0/tok") + suffix);
  }
  const std::string command = fmt::format(
      "{} sh -c 'cd {}/$OMPI_COMM_WORLD_RANK && exec {} train {} --data.train=tok --run.dir={}' 2>{}",
      on_ranks(2), scratch.path("."), program().string(), tiny(), scratch.path("run"), scratch.path("err"));
  const auto start = std::chrono::steady_clock::now();
  const int status = std::system(command.c_str());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_EQ(WEXITSTATUS(status), 66);
  const std::string err = tests::read_file(scratch.path("err"));
  EXPECT_EQ(count(err, "athanor: error: rank 1: "), 1) << err;
}

}  // namespace
}  // namespace athanor::config
