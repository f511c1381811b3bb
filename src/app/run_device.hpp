// run.device: what this machine has for it, and whether a job may start on it.
#pragma once

#include <string>

#include "config/run_config.hpp"
#include "device/device.hpp"
#include "parallel/communicator.hpp"

namespace athanor::app {

/// Throws ConfigError, which names what is missing and the way out, unless the `local_ranks` ranks of this
/// machine can all compute on run.device, and unless the command can. Asks the driver only for
/// run.device=cuda.
void check_device(const config::RunConfig& config, int local_ranks);

/// This rank's device: the GPU numbered by its place among the ranks of its machine, with the tensors' pool
/// set up, or the CPU. After check_device(), which also loads LibTorch's operators. Collective.
device::Device take_device(const config::RunConfig& config, const parallel::Communicator& world);

/// What --version adds about GPUs, with a newline; empty in a program built for CPUs.
std::string version_of_cuda();

}  // namespace athanor::app
