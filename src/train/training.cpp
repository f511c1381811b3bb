#include "train/training.hpp"

#include <fmt/format.h>

#include <fstream>
#include <iterator>
#include <limits>

#include "base/hash.hpp"
#include "base/log.hpp"
#include "train/training_result.hpp"
#include "train/training_run.hpp"

namespace athanor::train {

std::string file_hash(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return fmt::format("{:016x}", base::hash_string(bytes));
}

TrainingResult run_training(const TrainingOptions& options, const parallel::Communicator& world,
                            const parallel::Communicator& role) {
  StopRequest stop(options.stop, world, role);
  TrainingResult result;
  if (stop.agree(world)) {  // signalled before there was anything
    result.first_loss = result.last_loss = std::numeric_limits<double>::quiet_NaN();
    result.stopped = stop.conclude(true, world);
  } else {
    result = TrainingRun(options, world, role, stop).run();
  }
  if (!result.stopped.empty()) {
    base::log_info("{}", describe_stop(result));
  }
  return result;
}

}  // namespace athanor::train
