// What the `distill.*` texts mean for the layers and steps of a run, and what the link carries.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/run_config.hpp"
#include "distill/hidden_loss.hpp"
#include "distill/phase.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// The stages of the run. Presets are those of distill::phase_preset and `joint` (one stage with everything);
/// a list `kind:fraction,...` is made of feature_alignment (hidden states and attention alone), soft_label
/// (labels and the teacher's distribution) and joint (all; after a feature_alignment the features at a tenth
/// of their weight, as in three_stage). distill.hidden_weight and attention_weight are the weights of stages
/// that are about features; a term without layers weighs 0. A temperature_period of 0 is resolved so that
/// each stage goes from distill.temperature to temperature_min in equal parts of its steps. Throws
/// ConfigError for what distill::validate refuses, and for a stage without any term.
std::vector<distill::Phase> make_phases(const RunConfig& config);

/// distill.hidden_layers for one student: pairs in the order written (weights summing to 1), or equally
/// spaced ones for a count; none for 0. Throws ConfigError naming the key.
std::vector<distill::LayerPair> hidden_pairs(const RunConfig& config, const RoleConfig& student);
/// distill.attention_layers, likewise.
std::vector<distill::LayerPair> attention_pairs(const RunConfig& config, const RoleConfig& student);

/// Domains of data.train, in order, each once.
std::vector<std::string> train_domains(const RunConfig& config);

/// Bytes of a step's signals for one student at most (all payloads that any stage may need), headers left
/// out.
struct SignalBytes {
  std::int64_t payload = 0;    ///< of a token: the codec's
  std::int64_t hidden = 0;     ///< of a token: states of chosen layers
  std::int64_t attention = 0;  ///< of a token: queries and keys of chosen layers
  std::int64_t loss = 0;       ///< of a token: the teacher's cross-entropy
  std::int64_t gap = 0;        ///< of a step that measures the codec's gap: full logits of some tokens
  std::int64_t head = 0;       ///< of a step: the head's weights, when the codec needs them and they change
  std::int64_t per_token() const { return payload + hidden + attention + loss; }
};
/// model.vocab_size must be resolved.
SignalBytes signal_bytes(const RunConfig& config, const RoleConfig& student);

/// Bytes that the window of signals takes on a rank of a role of a distill job (estimated); 0 for other
/// commands.
std::int64_t link_memory(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims);

/// Throws ConfigError for what a distill job cannot do beyond what is wrong with a single role.
void validate_distill(const RunConfig& config);

}  // namespace athanor::config
