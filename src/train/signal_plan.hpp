// What flows from a teacher to a student in each step, known to both ends from the configuration alone.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <c10/core/ScalarType.h>

#include "base/precision.hpp"
#include "distill/hidden_loss.hpp"
#include "distill/link/teacher_link.hpp"
#include "distill/phase.hpp"
#include "model/transformer_config.hpp"

namespace athanor::train {

/// One student of the job as the link sees it.
struct StudentSignals {
  distill::RoleLayout layout;
  std::vector<distill::LayerPair> hidden_pairs;     ///< as distill::checked_pairs gives them; may be empty
  std::vector<distill::LayerPair> attention_pairs;  ///< likewise
};

/// The distillation of a job: the same values on all ranks of all roles.
struct SignalOptions {
  std::vector<distill::Phase> phases;
  std::int64_t total_steps = 0;
  std::int64_t first_step = 0;                       ///< done when this job starts; set by Objective::start
  std::vector<double> record_temperatures;           ///< sent besides those of the schedule, for a recording
  std::vector<std::string> domains;                  ///< of the training data, in the order of Batch::domains
  base::WireType state_wire = base::WireType::full;  ///< of layers' states, queries and keys
  base::Fp8Format fp8_format = base::Fp8Format::e4m3;
  model::TransformerConfig teacher;
  at::ScalarType teacher_type = at::kFloat;  ///< compute type
  bool teacher_frozen = false;
  distill::RoleLayout teacher_layout;
  std::vector<StudentSignals> students;
  std::uint64_t seed = 0;
  std::int64_t window = 2;
  bool overlap_sends = true;  ///< signals travel while the teacher computes
  double deadline_s = 300.0;
  std::int64_t gap_every = 0;       ///< steps between two measurements of the codec's gap; 0: none
  double gap_fraction = 0.01;       ///< of a sample's tokens that a measurement takes
  bool students_may_leave = false;  ///< a student may go on without a teacher that is late for good
};

/// Phase, weights and temperatures of one step; a pure function of the step.
struct StepSettings {
  distill::PhaseController::Step numbers;  ///< its `phase` points into the options
  std::vector<double> temperatures;        ///< in use, ascending
  bool measures_gap = false;               ///< the teacher sends some full logits too
};
StepSettings settings_of(const SignalOptions& options, std::int64_t step);

/// Names of fields.
namespace field {
inline constexpr const char* ce = "ce";
inline constexpr const char* full = "full";
inline constexpr const char* hidden = "hidden";
inline constexpr const char* head = "head";
/// The teacher's logits of measured positions, whatever the codec.
inline constexpr const char* gap_logits = "gap.logits";
inline constexpr const char* topk_ids = "topk.ids";
inline constexpr const char* topk_logits = "topk.logits";
inline constexpr const char* topk_lse_1 = "topk.lse_1";
inline constexpr const char* topk_lse = "topk.lse";
inline constexpr const char* topk_tail = "topk.tail";
inline constexpr const char* sampled_ids = "sampled.ids";
inline constexpr const char* sampled_counts = "sampled.counts";
inline constexpr const char* sampled_entropy = "sampled.entropy";
/// The state after block `layer` of the teacher; with `scale`: the scales of fp8.
std::string state(std::int64_t layer, bool scale = false);
/// Queries ("q") or keys ("k") of a layer of the teacher.
std::string attention(std::int64_t layer, char part);
}  // namespace field

/// The plan of each step between the teacher and student number `student`. The head's weights flow with the
/// `hidden` codec: every step while the teacher trains, once a job when it is frozen.
distill::PlanOfStep make_plan(const std::shared_ptr<SignalOptions>& options, std::size_t student);

/// Type of states and of queries and keys on the wire: data, before fp8's scales.
at::ScalarType state_type(const SignalOptions& options);

}  // namespace athanor::train
