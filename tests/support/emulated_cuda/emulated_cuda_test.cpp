// The double of CUDA's runtime itself: what it has to find is found, and only the order depends on the seed.
#include "support/emulated_cuda/emulated_cuda.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::emulated_cuda {

// With external linkage, so that reports have their names.
__global__ void leave_before_the_barrier(unsigned threads) {
  if (threadIdx.x >= threads) {
    return;
  }
  __syncthreads();
}
__global__ void leave_before_the_warps_barrier(unsigned thread) {
  if (threadIdx.x == thread) {
    return;
  }
  __syncwarp();
}
__global__ void leave_before_the_shuffle(unsigned thread, std::uint32_t* out) {
  if (threadIdx.x != thread) {
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, threadIdx.x, 1);
  }
}
__global__ void go_to_different_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void mix_barrier_and_shuffle() {
  if (threadIdx.x % 2 == 0) {
    __syncwarp();
  } else {
    static_cast<void>(__shfl_sync(0xffffffffu, 1, 0));
  }
}
__global__ void leave_lanes_out_of_the_mask() {
  __syncwarp(0xffffu);
}
__global__ void read_a_lane_that_is_not_there() {
  static_cast<void>(__shfl_sync(0xffffffffu, 1, 31));
}
__global__ void write_shared_word(std::size_t at) {
  static_cast<std::uint32_t*>(kernels::cuda::block_memory())[at] = 1;
}
__global__ void read_shared_words(std::uint32_t* out) {
  out[blockIdx.x] = *static_cast<std::uint32_t*>(kernels::cuda::block_memory());
  __syncthreads();
  *static_cast<std::uint32_t*>(kernels::cuda::block_memory()) = 0;
}
__global__ void do_nothing() {}
__global__ void note_order(unsigned* next, unsigned* order) {
  order[atomicAdd(next, 1u)] = threadIdx.x + blockDim.x * threadIdx.y;
}
/// Each thread takes its neighbour's number, from the other end of the block; right only with the barrier.
__global__ void pass_on(bool with_barrier, unsigned* out) {
  auto* numbers = static_cast<unsigned*>(kernels::cuda::block_memory());
  numbers[threadIdx.x] = threadIdx.x;
  if (with_barrier) {
    __syncthreads();
  }
  out[threadIdx.x] = numbers[blockDim.x - 1 - threadIdx.x];
}
__global__ void fold_warp(std::uint32_t* out) {
  std::uint32_t value = threadIdx.x;
  for (unsigned step = 16; step > 0; step /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, step);
  }
  out[threadIdx.x] = __shfl_sync(0xffffffffu, value, 0);
}

namespace {

using kernels::cuda::KernelShape;
using kernels::cuda::launch_kernel;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

KernelShape one_block(unsigned threads, std::size_t shared_bytes = 0) {
  return {1, dim3(threads), shared_bytes};
}

template <typename... Parameters, typename... Arguments>
void expect_found(const char* name, const char* what, unsigned threads, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  EXPECT_THAT(
      [&] { launch_kernel(kernel, one_block(threads, 64), nullptr, "test", arguments...); },
      ThrowsMessage<KernelError>(AllOf(HasSubstr(name), HasSubstr(what), HasSubstr("block (0, 0, 0)"))));
}

TEST(EmulatedCuda, ABarrierThatSomeThreadsDoNotReachIsFound) {
  for (const unsigned threads : {1u, 31u, 32u, 63u}) {
    expect_found("leave_before_the_barrier", "have returned", 64, leave_before_the_barrier, threads);
  }
  expect_found("leave_before_the_warps_barrier", "31 of 32 threads of warp 1", 64,
               leave_before_the_warps_barrier, 40u);
  launch_kernel(leave_before_the_barrier, one_block(64), nullptr, "test", 64u);  // and the double goes on
}

TEST(EmulatedCuda, AShuffleWithALaneThatHasLeftIsFound) {
  std::vector<std::uint32_t> out(64);
  expect_found("leave_before_the_shuffle", "31 of 32 threads of warp 0", 64, leave_before_the_shuffle, 5u,
               out.data());
}

TEST(EmulatedCuda, ThreadsAtDifferentPlacesAreFound) {
  expect_found("go_to_different_barriers", "while", 64, go_to_different_barriers);
  expect_found("mix_barrier_and_shuffle", "while", 32, mix_barrier_and_shuffle);
}

TEST(EmulatedCuda, MasksAndLanesThatAreNotThereAreFound) {
  expect_found("leave_lanes_out_of_the_mask", "0xffff", 32, leave_lanes_out_of_the_mask);
  expect_found("read_a_lane_that_is_not_there", "reads lane 31", 20, read_a_lane_that_is_not_there);
}

TEST(EmulatedCuda, WritesPastTheSharedMemoryAreFound) {
  expect_found("write_shared_word", "byte 64", 32, write_shared_word, std::size_t{16});
  launch_kernel(write_shared_word, one_block(32, 64), nullptr, "test", std::size_t{15});
}

TEST(EmulatedCuda, LaunchesOverTheLimitsAreRefusedAsByCuda) {
  const auto refused = [](const KernelShape& shape, const char* why) {
    EXPECT_THAT([&] { launch_kernel(do_nothing, shape, nullptr, "my_kernel"); },
                ThrowsMessage<base::DeviceError>(AllOf(HasSubstr("my_kernel"), HasSubstr(why))));
    launch_kernel(do_nothing, one_block(1), nullptr, "the next");  // the error is gone
  };
  refused({0, dim3(32), 0}, "cudaErrorInvalidConfiguration");
  refused({1, dim3(1025), 0}, "cudaErrorInvalidConfiguration");
  refused({1, dim3(64, 32), 0}, "cudaErrorInvalidConfiguration");
  refused({1, dim3(0), 0}, "cudaErrorInvalidConfiguration");
  refused({std::int64_t{1} << 31, dim3(1), 0}, "cudaErrorInvalidConfiguration");
  refused({1, dim3(32), 48 * 1024 + 16}, "cudaErrorInvalidValue");
  launch_kernel(do_nothing, {3, dim3(1024), 48 * 1024}, nullptr, "at the limits");
}

TEST(EmulatedCuda, EveryBlockStartsWithPoisonInItsSharedMemory) {
  std::vector<std::uint32_t> words(20, 0);
  launch_kernel(read_shared_words, {20, dim3(64), 64}, nullptr, "test", words.data());
  EXPECT_EQ(std::count(words.begin(), words.end(), 0u), 0);
  EXPECT_GT(std::set<std::uint32_t>(words.begin(), words.end()).size(), 1u);  // of several kinds
}

std::vector<unsigned> order_under(std::uint64_t seed) {
  set_seed(seed);
  unsigned next = 0;
  std::vector<unsigned> order(128);
  launch_kernel(note_order, {1, dim3(32, 4), 0}, nullptr, "test", &next, order.data());
  return order;
}

TEST(EmulatedCuda, TheOrderOfThreadsFollowsFromTheSeed) {
  EXPECT_EQ(order_under(1), order_under(1));
  EXPECT_NE(order_under(1), order_under(2));
  auto order = order_under(3);
  std::sort(order.begin(), order.end());
  std::vector<unsigned> all(128);
  std::iota(all.begin(), all.end(), 0u);
  EXPECT_EQ(order, all);
}

TEST(EmulatedCuda, ABarrierLeftOutChangesResults) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    set_seed(seed);
    std::vector<unsigned> right(256), wrong(256), expected(256);
    std::iota(expected.rbegin(), expected.rend(), 0u);
    launch_kernel(pass_on, one_block(256, 1024), nullptr, "test", true, right.data());
    launch_kernel(pass_on, one_block(256, 1024), nullptr, "test", false, wrong.data());
    EXPECT_EQ(right, expected);
    EXPECT_NE(wrong, expected);
  }
}

TEST(EmulatedCuda, ResultsDoNotDependOnTheSeed) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    set_seed(seed);
    std::vector<std::uint32_t> out(64);
    launch_kernel(fold_warp, one_block(64), nullptr, "test", out.data());
    EXPECT_EQ(out[0], 496u);
    EXPECT_EQ(out[63], 496u + 32 * 32);
    EXPECT_EQ(std::set<std::uint32_t>(out.begin(), out.end()).size(), 2u);
  }
}

TEST(EmulatedCudaDeathTest, MemoryEndsWhereItEnds) {
  const DeviceMemory memory(64);
  memory.data()[63] = std::byte{1};
  EXPECT_EXIT(static_cast<volatile std::byte*>(memory.data())[64] = std::byte{1},
              ::testing::KilledBySignal(SIGSEGV), "");
}

}  // namespace
}  // namespace athanor::emulated_cuda
