// Kernels of src/kernels/cuda on the host, for tests: see cuda_runtime.h here.
//
// A launch over CUDA's limits returns the error that CUDA would. Before a block runs its shared memory is
// filled with poison. What a GPU would answer with a hang or with wrong numbers ends the launch with a
// KernelError that names the kernel, the block, the threads and the place:
// - a barrier or shuffle that some threads of the block or warp do not reach, those that have returned
// included;
// - threads that meet at different barriers or shuffles;
// - a shuffle that reads a lane which the block does not have; a mask that leaves lanes of the warp out;
// - a write past the shared memory that the launch asked for.
// Of a stack that runs over, and of accesses past the end of DeviceMemory, the process dies by SIGSEGV.
//
// One thread of the host at a time may launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace athanor::emulated_cuda {

class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The order in which the threads of later blocks run. Starts as ATHANOR_EMULATED_CUDA_SEED in the
/// environment, or 1.
void set_seed(std::uint64_t seed);

/// A block's shared memory, as the double of a device that needs no opt-in for more.
inline constexpr std::size_t most_shared_bytes = 48 * 1024;
inline constexpr unsigned most_block_threads = 1024;

/// Memory "of the device" that ends at a page without access (but for up to 15 bytes, for the alignment of
/// its start), filled with poison: NaN as f32 and f64. Move-only.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory& operator=(DeviceMemory&& other) noexcept;

  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* pages_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  std::byte* data_ = nullptr;
};

}  // namespace athanor::emulated_cuda
