#include "device/detail/pool_options.hpp"

#include "base/error.hpp"

namespace athanor::device::detail {

void validate(const MemoryPoolOptions& options) {
  if (!(options.fraction > 0.0 && options.fraction <= 1.0)) {
    throw base::ConfigError(
        "the pool's share {} of a GPU's memory is outside (0, 1] (it is a fraction, no percentage): 0.92 "
        "leaves room for NCCL and cuBLAS",
        options.fraction);
  }
}

}  // namespace athanor::device::detail
