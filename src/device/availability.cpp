#include "device/availability.hpp"

#include <fmt/format.h>

#include "base/error.hpp"

namespace athanor::device {
namespace {

using base::ConfigError;

constexpr const char* way_out = "or run on the CPU with run.device=cpu";

std::string cuda_version(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string nccl_version(int version) {
  return fmt::format("{}.{}.{}", version / 10000, version % 10000 / 100, version % 100);
}

void require_driver(const Availability& machine) {
  if (machine.driver_version == 0) {
    throw ConfigError(
        "run.device=cuda needs NVIDIA's driver, and none is loaded here ({}): install one for CUDA {} or "
        "later and make its libcuda.so.1 visible (containers: start with --gpus or --nv), {}",
        machine.cause.empty() ? "the CUDA runtime found no driver" : machine.cause,
        cuda_version(minimum_driver_version), way_out);
  }
  if (machine.driver_version < minimum_driver_version) {
    throw ConfigError(
        "run.device=cuda needs a driver for CUDA {} or later, and this one serves CUDA {} only (the program "
        "uses CUDA {}): update the driver or install NVIDIA's forward-compatibility package, {}",
        cuda_version(minimum_driver_version), cuda_version(machine.driver_version),
        cuda_version(machine.runtime_version), way_out);
  }
}

void require_capability(const Availability& machine) {
  for (std::size_t i = 0; i < machine.gpus.size(); ++i) {
    const GpuInfo& gpu = machine.gpus[i];
    if (gpu.capability < minimum_capability) {
      throw ConfigError(
          "GPU {} ({}) has compute capability {}.{}, and {}.{} is the least that works (the kernels need "
          "bf16): hide it with CUDA_VISIBLE_DEVICES, {}",
          i, gpu.name, gpu.capability / 10, gpu.capability % 10, minimum_capability / 10,
          minimum_capability % 10, way_out);
    }
  }
}

}  // namespace

void require_gpus(const Availability& availability, int local_size) {
  if (!availability.compiled) {
    throw ConfigError(
        "run.device=cuda needs a program with CUDA, and this one was built for CPUs only: build with cmake "
        "--preset cuda (docs/gpu.md), {}",
        way_out);
  }
  require_driver(availability);
  if (availability.gpus.empty()) {
    throw ConfigError(
        "run.device=cuda needs a GPU, and this process sees none ({}): run on a node that has some, ask the "
        "scheduler for them (Slurm: --gpus-per-node), unset an empty CUDA_VISIBLE_DEVICES, {}",
        availability.cause.empty() ? "the driver lists none" : availability.cause, way_out);
  }
  require_capability(availability);
  if (availability.nccl_version != 0 && availability.nccl_version < minimum_nccl_version) {
    throw ConfigError(
        "run.device=cuda needs NCCL {} or later, and the library loaded is {} (LibTorch's CUDA library "
        "calls newer functions): scripts/install_dependencies.sh --cuda installs one; configure again with "
        "--fresh, or with -DNCCL_ROOT=<folder> for one of your own, {}",
        nccl_version(minimum_nccl_version), nccl_version(availability.nccl_version), way_out);
  }
  const auto gpus = static_cast<int>(availability.gpus.size());
  if (local_size > gpus) {
    throw ConfigError(
        "{} ranks on this node and {} GPU{} (each rank takes one of its own): start at most {} a node "
        "(mpirun: --map-by ppr:{}:node, Slurm: --ntasks-per-node={}), or make more GPUs visible",
        local_size, gpus, gpus == 1 ? "" : "s", gpus, gpus, gpus);
  }
}

std::string describe(const Availability& availability) {
  if (!availability.compiled) {
    return "none";
  }
  std::string text = fmt::format("CUDA {}", cuda_version(availability.runtime_version));
  text += availability.driver_version == 0
              ? " (no driver)"
              : fmt::format(" (driver {})", cuda_version(availability.driver_version));
  if (availability.nccl_version != 0) {
    text += fmt::format(", NCCL {}", nccl_version(availability.nccl_version));
  }
  if (availability.gpus.empty()) {
    return text + ", no GPU";
  }
  for (std::size_t i = 0; i < availability.gpus.size();) {
    std::size_t alike = i;
    while (alike < availability.gpus.size() && availability.gpus[alike].name == availability.gpus[i].name) {
      ++alike;
    }
    text += fmt::format(", {} x {}", alike - i, availability.gpus[i].name);
    i = alike;
  }
  return text;
}

}  // namespace athanor::device
