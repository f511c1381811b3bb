// `athanor bench kernels` with run.device=cuda: the device's kernels at the run's shape, in bf16, against
// what its memory and its matrix units give.
#pragma once

#include <vector>

#include "parallel/communicator.hpp"
#include "train/bench_kernels.hpp"

namespace athanor::train {

/// All kernels, all ranks working at once, timed by events on a stream of the device that is this thread's
/// current one. Rates moved by memory are compared with a copy of as many bytes, products with a square
/// product of 4096; reference_rate and speedup stay 0. Throws ConfigError in a build without CUDA.
/// Collective.
std::vector<KernelFigure> bench_gpu_kernels(const BenchKernelsOptions& options,
                                            const parallel::Communicator& role);

}  // namespace athanor::train
