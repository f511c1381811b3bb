// init_mode=shrink from outside: a teacher is trained, students start from its checkpoint.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using tests::Outcome;

// The teacher's; the command line wins over it.
constexpr const char* config_file = R"(
[model]
layers = 3
hidden = 32
heads = 4
kv_heads = 2
max_seq = 32
[moe]
experts = 8
top_k = 2
ffn = 24
[optim]
lr = 3e-3
min_lr = 0
warmup_steps = 0
[batch]
global = 8
seq = 32
)";

// A teacher of 80 steps; made once.
class StudentInitProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::string name = (fs::temp_directory_path() / "athanor-init-XXXXXX").string();
    work() = ::mkdtemp(name.data());
    std::ofstream text(work() / "text.txt");
    for (int i = 0; i < 3000; ++i) {
      text << fmt::format("{} {} and then {}.\n{}", i % 7, i % 7 * 3,
                          i % 5 == 0 ? "again the same" : "something new", i % 10 == 9 ? "\n" : "");
    }
    text.close();
    const Outcome made =
        run(fmt::format("tokenize --input={0}/text.txt --output={0}/data --tokenizer={0}/tokenizer.model "
                        "--tokenize.vocab_size=300"
                        " --tokenize.held_out=0.1",
                        work().string()));
    ASSERT_EQ(made.exit_code, 0) << made.err;
    std::ofstream(work() / "model.ini") << config_file;
    const Outcome trained = train("teacher", "--train.steps=80 --run.seed=3");
    ASSERT_EQ(trained.exit_code, 0) << trained.err;
  }
  static void TearDownTestSuite() { fs::remove_all(work()); }

  static fs::path& work() {
    static fs::path folder;
    return folder;
  }
  static Outcome run(const std::string& arguments) {
    return tests::run_program(work(), arguments, "OMP_NUM_THREADS=1");
  }
  static Outcome train(const std::string& name, const std::string& options) {
    return run(
        fmt::format("train --json --config={0}/model.ini --run.dir={0}/{1} --data.train={0}/data-train"
                    " --data.valid={0}/data-valid --data.tokenizer={0}/tokenizer.model {2}",
                    work().string(), name, options));
  }
  // A run of one step whose learning rate changes next to nothing: what the weights it starts from are worth.
  static double held_out(const std::string& name, const std::string& options) {
    const Outcome done = train(name, options + " --train.steps=1 --optim.lr=1e-12 --run.seed=9");
    EXPECT_EQ(done.exit_code, 0) << done.err;
    return done.exit_code == 0 ? done.json()["evaluation"].begin().value()["loss"].get<double>() : 0.0;
  }
  static std::string shrink(const std::string& options) {
    return fmt::format("--init={}/teacher --init_mode=shrink {}", work().string(), options);
  }
};

TEST_F(StudentInitProgram, StudentsStartWithMostOfWhatTheTeacherKnows) {
  const double random = held_out("random", "");
  const double teacher = held_out("same", shrink(""));
  const Outcome evaluated = run(
      fmt::format("evaluate --json --checkpoint={0}/teacher --data.valid={0}/data-valid", work().string()));
  ASSERT_EQ(evaluated.exit_code, 0) << evaluated.err;
  EXPECT_NEAR(teacher, evaluated.json()["loss"].get<double>(), 1e-6);
  ASSERT_LT(teacher, random - 1.0);
  const double half_ffn = held_out("ffn", shrink("--moe.ffn=12"));
  const double half_experts = held_out("experts", shrink("--moe.experts=4"));
  EXPECT_LT(half_ffn, random - 0.5 * (random - teacher));
  EXPECT_LT(half_experts, random - 0.5 * (random - teacher));
  const Outcome exact = train("exact", fmt::format("--init={}/teacher --train.steps=1", work().string()));
  EXPECT_EQ(exact.exit_code, 0) << exact.err;
}

TEST_F(StudentInitProgram, RefusesWithTheReason) {
  struct Case {
    std::string options;
    int code;
    const char* word;
  };
  const Case cases[] = {
      {fmt::format("--init={}/nowhere --init_mode=shrink", work().string()), 66, "nowhere"},
      {"--init_mode=shrink", 64, "init is empty"},
      {"--init_layers=0,1,2", 64, "init_mode=shrink"},
      {shrink("--model.layers=2 --init_layers=0,7"), 64, "out of range"},
      {shrink("--model.layers=2 --init_layers=0"), 64, "init_layers=0"},
      {shrink("--model.layers=2 --init_layers=1,0"), 64, "rising"},
      {shrink("--model.layers=2 --init_layers=a,b"), 64, "is no layer"},
      {shrink("--model.layers=4"), 64, "model.layers=4"},
      {shrink("--model.hidden=64"), 64, "model.hidden=64"},
      {shrink("--model.vocab_size=320"), 64, "model.vocab_size=320"},
      {shrink("--init_experts=some"), 64, "choose, merge"},
  };
  for (const Case& test : cases) {
    const Outcome done = train("refused", test.options);
    EXPECT_EQ(done.exit_code, test.code) << test.options << "\n" << done.err;
    EXPECT_THAT(done.err, HasSubstr(test.word));
  }
  EXPECT_FALSE(fs::exists(work() / "refused")) << "refused before anything is made";
  const Outcome exact =
      train("other-shape", fmt::format("--init={}/teacher --moe.experts=4", work().string()));
  EXPECT_EQ(exact.exit_code, 65) << exact.err;
  EXPECT_THAT(exact.err, HasSubstr("init_mode=shrink"));
}

// Teacher and student of one job, the student out of the teacher's own checkpoint.
TEST_F(StudentInitProgram, DistillStartsTheStudentFromTheTeachersCheckpoint) {
  const auto distill = [&](const std::string& name, const std::string& options) {
    const std::string arguments = fmt::format(
        "distill --json --config={0}/model.ini --run.dir={0}/{1} --data.train={0}/data-train"
        " --data.tokenizer={0}/tokenizer.model --teacher.init={0}/teacher --teacher.frozen=true"
        " --teacher.ranks=1 --student.ranks=1 --student.moe.experts=0 --student.model.ffn=48"
        " --student.model.layers=2 --distill.phases=joint --distill.hidden_layers=0 --train.steps=2 {2}",
        work().string(), name, options);
    return tests::run_program(work(), arguments, tests::on_ranks(2));
  };
  const Outcome random = distill("pair-random", "");
  ASSERT_EQ(random.exit_code, 0) << random.err;
  const Outcome shrunk = distill(
      "pair", fmt::format("--student.init={}/teacher --student.init_mode=shrink --student.init_layers=0,2"
                          " --student.init_experts=merge",
                          work().string()));
  ASSERT_EQ(shrunk.exit_code, 0) << shrunk.err;
  EXPECT_LT(shrunk.json()["student"]["first_loss"].get<double>(),
            random.json()["student"]["first_loss"].get<double>() - 0.3);
  const Outcome refused =
      distill("pair-refused", fmt::format("--student.init={}/teacher --student.init_mode=shrink"
                                          " --student.init_layers=0,9",
                                          work().string()));
  EXPECT_EQ(refused.exit_code, 64) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("out of range"));
}

}  // namespace
}  // namespace athanor
