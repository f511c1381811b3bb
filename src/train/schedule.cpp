#include "train/schedule.hpp"

namespace athanor::train {

Schedule accumulation_schedule(std::int64_t num_micro_batches) {
  Schedule schedule;
  for (std::int64_t i = 0; i < num_micro_batches; ++i) {
    schedule.push_back({ActionKind::forward, i, 0});
    schedule.push_back({ActionKind::backward, i, 0});
  }
  return schedule;
}

}  // namespace athanor::train
