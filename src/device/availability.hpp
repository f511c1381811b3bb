// What a machine offers to run.device=cuda, and why it may be refused. Asking needs no GPU and no build with
// CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace athanor::device {

/// Oldest versions that a run on GPUs accepts. A driver serves every runtime of its major version; LibTorch's
/// CUDA library is linked against functions that NCCL has since 2.30; the kernels use bf16 and asynchronous
/// copies.
inline constexpr int minimum_driver_version = 13000;
inline constexpr int minimum_nccl_version = 23000;
inline constexpr int minimum_capability = 80;

struct GpuInfo {
  std::string name;
  int capability = 0;  ///< 10 * major + minor, e.g. 90
  std::int64_t memory_bytes = 0;
  std::string pci_bus;  ///< domain:bus:device.function
};

struct Availability {
  bool compiled = false;   ///< this program was built with CUDA
  int driver_version = 0;  ///< newest CUDA version the driver serves, 1000 * major + 10 * minor; 0: no driver
  int runtime_version = 0;  ///< of the CUDA runtime library, as the driver's
  int nccl_version = 0;     ///< of the NCCL library, 10000 * major + 100 * minor + patch; 0: not asked
  std::vector<GpuInfo> gpus{};
  std::string cause{};  ///< CUDA's words where it could not list GPUs
};

/// Whether this program was built with CUDA.
bool compiled_with_cuda() noexcept;

/// Asks the driver and the CUDA runtime; never throws for what is absent. NCCL's version is the caller's to
/// fill in: only `parallel` knows NCCL.
Availability query_availability();

/// Throws ConfigError, which names what is wrong and the way out, unless `local_size` ranks of this node can
/// each have a GPU of their own. `local_size` 0 leaves the number of ranks out.
void require_gpus(const Availability& availability, int local_size);

/// E.g. "CUDA 13.0 (driver 13.1), NCCL 2.30.7, 8 x NVIDIA H100 80GB HBM3"; "none" in a build without CUDA.
std::string describe(const Availability& availability);

/// Loads LibTorch's CUDA library with all operators into this process. Throws ConfigError with the loader's
/// words where it or one of the libraries that it needs is missing. Does nothing in a process that has it.
void load_tensor_library();

}  // namespace athanor::device
