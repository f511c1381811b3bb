// The implementations behind kernels_of().
#pragma once

#include "kernels/tensor_kernels.hpp"

namespace athanor::kernels::detail {

const TensorKernels& cpu_kernels();

/// Those of CUDA, on this thread's current stream. Defined in a build with CUDA, and over the tests' double
/// of its runtime.
const TensorKernels& cuda_kernels();

/// cuda_kernels(), or null in a build without CUDA.
const TensorKernels* cuda_kernels_if_built();

}  // namespace athanor::kernels::detail
