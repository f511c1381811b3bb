#include "app/run_device.hpp"

#include "app/launch.hpp"
#include "base/error.hpp"
#include "config/command_line.hpp"
#include "device/availability.hpp"
#include "device/memory.hpp"
#include "parallel/nccl/nccl_library.hpp"

namespace athanor::app {
namespace {

device::Availability query() {
  device::Availability found = device::query_availability();
  found.nccl_version = parallel::nccl_version();
  return found;
}

bool computes_on_gpus(config::Command command) {
  return command == config::Command::bench_kernels;
}

}  // namespace

void check_device(const config::RunConfig& config, int local_ranks) {
  if (config.run.device != config::DeviceKind::cuda) {
    return;
  }
  device::require_gpus(query(), local_ranks);
  if (computes_on_gpus(config.command)) {
    device::load_tensor_library();
    return;
  }
  throw base::ConfigError(
      "run.device=cuda (this machine's GPUs are in order, but {} computes on the CPU in this version; "
      "scripts/gpu_check.sh runs what there is for GPUs) use run.device=cpu",
      config::command_name(config.command));
}

device::Device take_device(const config::RunConfig& config, const parallel::Communicator& world) {
  if (config.run.device != config::DeviceKind::cuda) {
    return {};
  }
  const device::Device taken = device::Device::take_gpu(find_local_rank(world));
  device::configure_memory_pool({});
  return taken;
}

std::string version_of_cuda() {
  return device::compiled_with_cuda() ? device::describe(query()) + "\n" : "";
}

}  // namespace athanor::app
