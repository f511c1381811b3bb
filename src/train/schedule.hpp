// What one rank does in a step, as a list of actions.
#pragma once

#include <cstdint>
#include <vector>

namespace athanor::train {

enum class ActionKind { forward, backward };

/// Forward or backward of one micro-batch through one stage (range of layers) of the model.
struct Action {
  ActionKind kind = ActionKind::forward;
  std::int64_t micro_batch = 0;
  std::int64_t stage = 0;
};

using Schedule = std::vector<Action>;

/// Gradient accumulation on one stage: forward and backward of each micro-batch in turn.
Schedule accumulation_schedule(std::int64_t num_micro_batches);

}  // namespace athanor::train
