// The accelerator of this rank, or the CPU.
#pragma once

#include <cstddef>

namespace athanor::device {

enum class DeviceKind { cpu, cuda };

/// Which accelerator this rank works on. A value: copying it does nothing to the machine.
class Device {
 public:
  /// The CPU.
  Device() = default;

  /// Takes the GPU numbered by the rank's place among the ranks of its node and makes it this thread's
  /// current one, so that later streams, memory and kernels are there. Throws DeviceError; call
  /// require_gpus() first for the refusals that a user can act on.
  static Device take_gpu(int local_rank);

  DeviceKind kind() const noexcept { return kind_; }
  bool is_cuda() const noexcept { return kind_ == DeviceKind::cuda; }
  /// The GPU's number in this process; 0 for the CPU.
  int index() const noexcept { return index_; }

  /// CUDA's current device is one per thread: every thread that touches the GPU calls this first. No-op on
  /// the CPU.
  void make_current() const;

  /// Free and total bytes of the GPU's memory; of no meaning (0, 0) on the CPU.
  struct Memory {
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
  };
  Memory memory() const;

 private:
  Device(DeviceKind kind, int index) : kind_(kind), index_(index) {}
  DeviceKind kind_ = DeviceKind::cpu;
  int index_ = 0;
};

}  // namespace athanor::device
