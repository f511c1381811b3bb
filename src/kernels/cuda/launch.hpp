// What every CUDA kernel's launcher checks.
#pragma once

#include "kernels/cuda/launch_shape.hpp"

namespace athanor::kernels::cuda {

/// Throws when the launch just made on this thread was refused (its shape, the device, an earlier error). The
/// kernel itself runs later; what goes wrong in it is seen by whoever waits for the stream.
void check_launch(const char* kernel);

/// Throws before a launch whose teams would need more shared memory than a block has.
void check_fits(const RowLaunch& launch, const char* kernel);

}  // namespace athanor::kernels::cuda
