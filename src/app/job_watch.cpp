#include "app/job_watch.hpp"

namespace athanor::app {
namespace {

train::WatchdogOptions make_options(const config::RunConfig& config, const std::string& role) {
  train::WatchdogOptions options;
  options.folder = config.run.dir + "/heartbeat";
  options.log_file = config.run.dir + "/log.txt";
  options.role = role;
  options.soft_s = {config.watchdog.start_s, config.watchdog.step_s, config.watchdog.evaluate_s,
                    config.watchdog.save_s};
  options.hard_factor = config.watchdog.hard_factor;
  return options;
}

}  // namespace

JobWatch::JobWatch(const config::RunConfig& config, const std::string& role,
                   const parallel::Communicator& world)
    : watchdog_(make_options(config, role), world) {
  if (config.run.check_collectives) {
    check_.emplace(world, parallel::CollectiveCheckOptions{.deadline_s = config.run.check_deadline_s});
  }
}

void JobWatch::finish(const parallel::Communicator& world) {
  watchdog_.finish(world);
}

}  // namespace athanor::app
