// A role's training state as named tensor slices and scalars, for checkpoints: the one way in and out.
//
// Names: "<role>/parameters/<parameter>" (master weights), "<role>/exp_avg/...", "<role>/exp_avg_sq/..."
// (AdamW's moments), "<role>/residual.<holder>/..." (error feedback, one of each holder of a slice),
// "<role>/balance/previous_counts", "<role>/balance/bias". Scalars: StoredRole::state.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/tensor_slice.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// What an element type of checkpoints is called in LibTorch.
at::ScalarType scalar_type(checkpoint::ElementType type);

/// The slices that this rank writes. They point into the trainer's own memory: valid until its next step.
/// Over the role every element of every tensor is in one rank's slices.
std::vector<checkpoint::TensorSlice> written_slices(Trainer& trainer);
/// Layout and scalars of the role.
checkpoint::StoredRole stored_role(Trainer& trainer);

/// The scalars of a state, all of them; the tensors of its balance state are slices.
nlohmann::json scalars_to_json(const TrainState& state);
/// Throws CheckpointError naming a missing or malformed member.
void scalars_from_json(const nlohmann::json& json, TrainState& state);

/// Starts a run from somebody else's weights: parameters only, at step 0.
struct InitialWeights {
  std::string role;  ///< in the checkpoint; empty: the trainer's own, or the only one there is
};

/// A state read into memory of its own: nothing of a trainer has been touched.
class StagedState {
 public:
  /// Reads what this rank keeps of the role from a checkpoint, at any layout. A checkpoint of weights only
  /// gives a state at step 0. Not collective. Throws CheckpointError.
  StagedState(Trainer& trainer, const checkpoint::CheckpointReader& reader);
  /// The weights alone; parameters that the checkpoint's model does not have keep their initial values only
  /// if the objective added them ("distill." names).
  StagedState(Trainer& trainer, const checkpoint::CheckpointReader& reader, const InitialWeights& initial);
  /// Hands the state over. Collective over the role; call when all ranks have staged theirs.
  void apply(Trainer& trainer) &&;

 private:
  std::vector<at::Tensor> targets_;  // in the trainer
  std::vector<at::Tensor> staged_;   // stored type
  TrainState state_;
};

/// Fills `parameters` (converting the number format) and the biases from a role's part of a checkpoint, for
/// evaluation and generation. Not collective. Throws CheckpointError.
void load_weights(const checkpoint::CheckpointReader& reader, const std::string& role,
                  const parallel::ParameterMap& parameters, moe::BalanceState& balance);

}  // namespace athanor::train
