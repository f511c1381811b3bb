#include "device/device.hpp"

#include "device/availability.hpp"

namespace athanor::device {

Device Device::take_gpu(int /*local_rank*/) {
  require_gpus(query_availability(), 0);  // throws: this is a build without CUDA
  return {};
}

void Device::make_current() const {}

Device::Memory Device::memory() const {
  return {};
}

}  // namespace athanor::device
