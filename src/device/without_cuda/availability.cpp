#include "device/availability.hpp"

#include "base/error.hpp"

namespace athanor::device {

bool compiled_with_cuda() noexcept {
  return false;
}

Availability query_availability() {
  return {};
}

void load_tensor_library() {
  require_gpus({}, 0);
}

}  // namespace athanor::device
