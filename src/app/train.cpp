// `athanor train`.
#include "train/training.hpp"

#include <optional>

#include "app/commands.hpp"
#include "app/job_watch.hpp"
#include "app/role_setup.hpp"
#include "app/training_job.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {

CommandResult run_train(const config::RunConfig& config, const parallel::Communicator& world) {
  std::optional<checkpoint::RunLock> lock;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      check_data_files(config);
      lock.emplace(prepare_run_folder(config));
    }
  });
  const parallel::RoleSplit roles = split_roles(config, world);
  JobWatch watch(config, config.roles[0].name, world);
  const train::TrainingResult result =
      train::run_training(make_training_options(config, config.roles[0]), world, roles.comm());
  watch.finish(world);
  return {to_text(result), to_json(result), exit_code_of(result)};
}

}  // namespace athanor::app
