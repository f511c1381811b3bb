// Which machines run.device=cuda refuses, and what it says; and what this machine is.
#include "device/availability.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"
#include "device/device.hpp"

namespace athanor::device {
namespace {

using testing::HasSubstr;

Availability good_node(int gpus) {
  Availability node{
      .compiled = true, .driver_version = 13010, .runtime_version = 13000, .nccl_version = 23007};
  for (int i = 0; i < gpus; ++i) {
    node.gpus.push_back({"NVIDIA H100 80GB HBM3", 90, std::int64_t{80} << 30, "0000:01:00.0"});
  }
  return node;
}

std::string refusal(const Availability& node, int local_size) {
  try {
    require_gpus(node, local_size);
  } catch (const base::ConfigError& error) {
    EXPECT_EQ(error.exit_code(), base::ExitCode::usage);
    return error.what();
  }
  return {};
}

TEST(Availability, AGoodNodeIsTaken) {
  EXPECT_EQ(refusal(good_node(8), 8), "");
  EXPECT_EQ(refusal(good_node(8), 1), "");
  EXPECT_EQ(refusal(good_node(1), 0), "");
}

TEST(Availability, ABuildForCpusSaysSo) {
  EXPECT_THAT(refusal({}, 1), HasSubstr("built for CPUs only"));
  EXPECT_THAT(refusal({}, 1), HasSubstr("--preset cuda"));
}

TEST(Availability, AMissingDriverIsNotAnOldOne) {
  Availability node = good_node(1);
  node.gpus.clear();
  node.driver_version = 0;
  node.cause = "cudaErrorInsufficientDriver: too old";
  EXPECT_THAT(refusal(node, 1), HasSubstr("none is loaded here"));
  EXPECT_THAT(refusal(node, 1), HasSubstr("cudaErrorInsufficientDriver"));
  node.driver_version = 12080;
  EXPECT_THAT(refusal(node, 1), HasSubstr("serves CUDA 12.8 only"));
  EXPECT_THAT(refusal(node, 1), HasSubstr("13.0 or later"));
}

TEST(Availability, NoVisibleGpuTellsTheCause) {
  Availability node = good_node(0);
  node.cause = "cudaErrorNoDevice: no CUDA-capable device is detected";
  EXPECT_THAT(refusal(node, 1), HasSubstr("sees none (cudaErrorNoDevice"));
  node.cause.clear();
  EXPECT_THAT(refusal(node, 1), HasSubstr("the driver lists none"));
}

TEST(Availability, AnOldGpuIsNamed) {
  Availability node = good_node(2);
  node.gpus[1] = {"Tesla V100", 70, std::int64_t{16} << 30, "0000:02:00.0"};
  EXPECT_THAT(refusal(node, 1), HasSubstr("GPU 1 (Tesla V100) has compute capability 7.0"));
  node.gpus[1].capability = minimum_capability;
  EXPECT_EQ(refusal(node, 1), "");
}

TEST(Availability, AnOldNcclIsNamed) {
  Availability node = good_node(1);
  node.nccl_version = 22809;
  EXPECT_THAT(refusal(node, 1), HasSubstr("needs NCCL 2.30.0 or later, and the library loaded is 2.28.9"));
  node.nccl_version = minimum_nccl_version;
  EXPECT_EQ(refusal(node, 1), "");
  node.nccl_version = 0;  // not asked
  EXPECT_EQ(refusal(node, 1), "");
}

TEST(Availability, MoreRanksThanGpusOnTheNode) {
  EXPECT_THAT(refusal(good_node(4), 5), HasSubstr("5 ranks on this node and 4 GPUs"));
  EXPECT_THAT(refusal(good_node(1), 2), HasSubstr("1 GPU "));
  EXPECT_EQ(refusal(good_node(4), 4), "");
}

// What is wrong with the program comes before what is wrong with the machine, and that before the number of
// ranks.
TEST(Availability, TheFirstReasonIsTold) {
  Availability node = good_node(1);
  node.gpus[0].capability = 70;
  node.nccl_version = 22000;
  EXPECT_THAT(refusal(node, 9), HasSubstr("compute capability"));
  node.driver_version = 11000;
  EXPECT_THAT(refusal(node, 9), HasSubstr("a driver for CUDA"));
  node.compiled = false;
  EXPECT_THAT(refusal(node, 9), HasSubstr("CPUs only"));
}

TEST(Availability, Description) {
  EXPECT_EQ(describe({}), "none");
  Availability node = good_node(2);
  EXPECT_EQ(describe(node), "CUDA 13.0 (driver 13.1), NCCL 2.30.7, 2 x NVIDIA H100 80GB HBM3");
  node.gpus[1].name = "NVIDIA A100";
  EXPECT_THAT(describe(node), HasSubstr("1 x NVIDIA H100 80GB HBM3, 1 x NVIDIA A100"));
  node.gpus.clear();
  node.driver_version = 0;
  EXPECT_EQ(describe(node), "CUDA 13.0 (no driver), NCCL 2.30.7, no GPU");
}

TEST(Availability, ThisMachineCanBeAsked) {
  const Availability here = query_availability();
  EXPECT_EQ(here.compiled, compiled_with_cuda());
  EXPECT_EQ(here.runtime_version != 0, compiled_with_cuda());
  if (here.gpus.empty()) {
    EXPECT_THROW(require_gpus(here, 1), base::ConfigError);
  }
}

TEST(Availability, ABuildForCpusRefusesWhatNeedsAGpu) {
  if (compiled_with_cuda()) {
    GTEST_SKIP() << "this is a build with CUDA";
  }
  EXPECT_THROW(load_tensor_library(), base::ConfigError);
  EXPECT_THROW(Device::take_gpu(0), base::ConfigError);
  EXPECT_FALSE(Device().is_cuda());
  EXPECT_EQ(Device().memory().total_bytes, 0U);
}

}  // namespace
}  // namespace athanor::device
