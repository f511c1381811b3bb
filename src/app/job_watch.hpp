// Those who watch a job of `train` or `distill`: the watchdog, and in debug mode the check of collectives.
#pragma once

#include <optional>
#include <string>

#include "config/run_config.hpp"
#include "parallel/collectives/collective_check.hpp"
#include "parallel/communicator.hpp"
#include "train/watchdog.hpp"

namespace athanor::app {

class JobWatch {
 public:
  /// The run's folder exists; `role` is for messages. Collective over `world`.
  JobWatch(const config::RunConfig& config, const std::string& role, const parallel::Communicator& world);
  /// The work is done, on all ranks. Collective over `world`.
  void finish(const parallel::Communicator& world);

 private:
  std::optional<parallel::CollectiveCheck> check_;
  train::Watchdog watchdog_;
};

}  // namespace athanor::app
