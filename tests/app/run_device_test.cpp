// run.device=cuda on machines and in programs without what it needs: refused at once, before any work.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "device/availability.hpp"
#include "support/program.hpp"

namespace athanor {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;
using tests::Outcome;

class RunDevice : public testing::Test {
 protected:
  RunDevice() {
    std::string name = (fs::temp_directory_path() / "athanor-device-XXXXXX").string();
    work_ = ::mkdtemp(name.data());
  }
  ~RunDevice() override { fs::remove_all(work_); }

  Outcome run(const std::string& arguments, const std::string& before = "") const {
    return tests::run_program(work_, arguments, before);
  }

  std::string train() const {
    return "train --model.vocab_size=512 --data.train=none --run.device=cuda --run.dir=" +
           (work_ / "run").string();
  }

  // What this program and machine are to say to one rank.
  static std::string reason() {
    try {
      device::require_gpus(device::query_availability(), 1);
      return "computes on the CPU in this version";
    } catch (const base::ConfigError& error) {
      return error.what();
    }
  }

  fs::path work_;
};

TEST_F(RunDevice, IsRefusedBeforeAnyWork) {
  const Outcome outcome = run(train());
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.err, HasSubstr(reason()));
  EXPECT_THAT(outcome.err, HasSubstr("run.device=cpu"));
  EXPECT_EQ(outcome.out, "");
  EXPECT_FALSE(fs::exists(work_ / "run"));
}

TEST_F(RunDevice, IsRefusedOnceByAllRanksTogether) {
  const Outcome outcome = run("bench step --model.vocab_size=512 --run.device=cuda", tests::on_ranks(2));
  EXPECT_EQ(outcome.exit_code, 64);
  const std::size_t first = outcome.err.find("athanor: error:");
  ASSERT_NE(first, std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("athanor: error:", first + 1), std::string::npos) << outcome.err;
}

TEST_F(RunDevice, ANodeWhoseGpusAreHiddenSeesNone) {
  if (!device::compiled_with_cuda()) {
    GTEST_SKIP() << "this is a build for CPUs";
  }
  const Outcome outcome = run("bench step --model.vocab_size=512 --run.device=cuda", "CUDA_VISIBLE_DEVICES=");
  EXPECT_EQ(outcome.exit_code, 64);
  EXPECT_THAT(outcome.err, testing::AnyOf(HasSubstr("needs a GPU"), HasSubstr("needs NVIDIA's driver")));
}

// A plan for a cluster may be made anywhere.
TEST_F(RunDevice, APlanForOtherRanksNeedsNoGpu) {
  const Outcome outcome = run("bench step --model.vocab_size=512 --run.device=cuda --dry-run --ranks=8");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
}

// A program for CPUs loads what LibTorch's wheel itself links, one with CUDA not yet LibTorch's operators.
TEST_F(RunDevice, LoadsNoMoreOfCudaThanItNeeds) {
  const Outcome outcome = run("", "LD_TRACE_LOADED_OBJECTS=1");
  EXPECT_THAT(outcome.out, HasSubstr("libtorch_cpu.so"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("libtorch_cuda.so")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("libcuda.so")));
  if (!device::compiled_with_cuda()) {
    for (const char* library : {"libc10_cuda", "libnccl", "libcublas", "libcudnn"}) {
      EXPECT_THAT(outcome.out, Not(HasSubstr(library)));
    }
  }
}

TEST_F(RunDevice, TheVersionNamesCudaWhereItIsBuiltIn) {
  const Outcome outcome = run("--version");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out, HasSubstr("athanor "));
  if (device::compiled_with_cuda()) {
    EXPECT_THAT(outcome.out, HasSubstr("NCCL 2."));
  } else {
    EXPECT_THAT(outcome.out, Not(HasSubstr("CUDA")));
  }
}

}  // namespace
}  // namespace athanor
