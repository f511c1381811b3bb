#include "kernels/cuda/launch.hpp"

#include "base/error.hpp"
#include "device/cuda/check.hpp"

namespace athanor::kernels::cuda {

void check_launch(const char* kernel) {
  device::check_cuda(cudaGetLastError(), kernel, __FILE__, __LINE__);
}

void check_fits(const RowLaunch& launch, const char* kernel) {
  ATHANOR_CHECK(launch.fits(), "CUDA kernel {} needs {} bytes of shared memory for one row, of at most {}",
                kernel, launch.shared_bytes(), most_shared_bytes - exchange_bytes);
}

}  // namespace athanor::kernels::cuda
