// A role's first weights from the checkpoint of a larger model (distill/student_init.hpp): reads the
// checkpoint, shares the planning among the role's ranks, gives each rank its slices.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_reader.hpp"
#include "distill/student_init.hpp"
#include "model/transformer_config.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// How a role starts from a larger model.
struct ShrinkOptions {
  std::string role;                 ///< whose weights, in the checkpoint
  model::TransformerConfig source;  ///< the model that they are of
  distill::StudentInitOptions reduction;
};

/// A model as student initialisation sees it.
distill::ModelShape describe_model(const model::TransformerConfig& config);

/// Refuses before any work what shrinking cannot do, or of a checkpoint of another tokenizer (`tokenizer`:
/// content as in manifests; empty: not known). Throws ConfigError.
void check_shrink(const ShrinkOptions& options, const model::TransformerConfig& student,
                  const checkpoint::Manifest& stored, const std::string& tokenizer);

/// "shrunk (layers 0,2; experts chosen)": what tells two ways from one checkpoint apart.
std::string describe_shrink(const ShrinkOptions& options);

/// The role whose weights one called `own` shrinks from: the only one there is, the teacher's where there are
/// several, else its own. Throws CheckpointError when there is none of these.
std::string choose_source_role(const checkpoint::CheckpointReader& reader, const std::string& own);

/// Throws CheckpointError, which names init_mode=shrink, when a parameter of the trainer's model is absent or
/// has another shape in the role's part of the checkpoint that it would start from unchanged.
void check_same_shapes(const Trainer& trainer, const checkpoint::CheckpointReader& reader);

/// The tensors of one role of a checkpoint, read a part at a time and verified. Keeps what it read last
/// (three pieces of at most 64 MB), because neighbouring parts are wanted next.
class CheckpointWeights : public distill::WeightSource {
 public:
  /// `reader` outlives this.
  CheckpointWeights(const checkpoint::CheckpointReader& reader, const ShrinkOptions& options);
  /// Throws CheckpointError for a tensor that is absent, of another shape, or damaged.
  at::Tensor read(const std::string& name, const parallel::ShardSpec& box) const override;
  std::vector<double> expert_uses(std::int64_t layer) const override;
  /// The routing biases [layers, experts] in f64; undefined when the checkpoint has none.
  at::Tensor biases() const;

 private:
  struct Window {
    std::string name;
    std::int64_t first = 0;
    at::Tensor rows;
  };
  const Window& window(const std::string& name, const std::vector<std::int64_t>& shape, std::int64_t first,
                       std::int64_t count) const;
  at::Tensor read_box(const std::string& name, const parallel::ShardSpec& box) const;

  const checkpoint::CheckpointReader& reader_;
  std::string role_;
  std::vector<bool> sparse_;
  at::Tensor counts_LE_;
  mutable std::vector<Window> windows_;
};

/// Gives the trainer weights made from the checkpoint's; parameters that an objective added keep their
/// initial values, optimizer state stays as it is. The same on every layout. Collective over the role.
/// Throws ConfigError (see check_shrink), CheckpointError.
void start_from_larger(Trainer& trainer, const checkpoint::CheckpointReader& reader,
                       const ShrinkOptions& options);

}  // namespace athanor::train
