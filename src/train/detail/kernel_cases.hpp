// What `bench kernels` runs: each kernel on random data of the run's shape.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/bench_kernels.hpp"

namespace athanor::train::detail {

/// One kernel, ready to run. `work` is what one call of it must move (bytes) or compute (operations).
struct KernelCase {
  std::string name;
  bool is_product = false;  ///< work is operations, not bytes
  bool is_bf16 = false;     ///< which product is its limit
  double work = 0.0;
  std::function<void()> fast;
  double reference_work = 0.0;
  std::function<void()> reference;  ///< in f32
};

/// Makes one case; deferred, so that only one case's memory exists at a time.
using MakeCase = std::function<KernelCase()>;

std::vector<MakeCase> kernel_cases(const BenchKernelsOptions& options);

}  // namespace athanor::train::detail
