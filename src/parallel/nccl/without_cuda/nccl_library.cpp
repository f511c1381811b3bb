#include "parallel/nccl/nccl_library.hpp"

#include "base/error.hpp"

namespace athanor::parallel {

int nccl_version() {
  return 0;
}

std::shared_ptr<NcclApi> make_nccl_library(const NcclLibraryOptions& /*options*/) {
  throw base::ConfigError(
      "NCCL is asked for (this program was built without CUDA) build it with cmake --preset cuda, or run on "
      "the "
      "CPU");
}

}  // namespace athanor::parallel
