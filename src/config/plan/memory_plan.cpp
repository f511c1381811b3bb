#include "config/plan/memory_plan.hpp"

#include <algorithm>

#include "config/distill_plan.hpp"
#include "config/plan/element_bytes.hpp"
#include "config/plan/parameter_storages.hpp"
#include "config/validate.hpp"
#include "nn/token_batch.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::config {
namespace {

bool is_student(const RunConfig& config, const RoleConfig& role) {
  return has_students(config.command) && role.kind == parallel::RoleKind::student;
}

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Gradients that wait in FP8, and the largest of them in full while it is made.
bool waits_in_fp8(const RoleConfig& role, const ParameterStorage& storage) {
  const optim::StoredGradients stored = role.precision.store_gradients;
  return stored == optim::StoredGradients::all ||
         (stored == optim::StoredGradients::experts && storage.is_expert);
}

void add_storage(MemoryPlan& plan, const RunConfig& config, const RoleConfig& role,
                 const ParameterStorage& storage) {
  const std::int64_t element = compute_bytes(role.precision.compute);
  const std::int64_t accumulator = accumulation_bytes(role.precision.compute);
  const std::int64_t total = storage.layout.total();
  const std::int64_t shard = storage.layout.shard_total();
  const bool is_alone = storage.num_holders() == 1;
  plan.parameters += total * element;
  plan.gradients += waits_in_fp8(role, storage)
                        ? wire_gradient_bytes(total, base::WireType::fp8, role.precision.compute)
                        : total * accumulator;
  plan.gradients += is_alone ? 0 : shard * accumulator;
  plan.gradients += role.precision.error_feedback && !is_alone ? total * accumulator : 0;
  if (role.optim.overlap_reduce && !is_alone) {
    // What arrives, and with another wire than full what is sent too.
    const base::WireType wire = role.precision.grad_comm;
    const std::int64_t travels = wire_gradient_bytes(total, wire, role.precision.compute);
    plan.exchange += wire == base::WireType::full ? travels - travels / storage.num_holders() : 2 * travels;
  }
  const std::int64_t held = role.optim.zero == 1 ? shard : total;
  plan.optimizer += held * accumulator * (element == accumulator ? 2 : 3);
  const bool saves = config.command == Command::train || config.command == Command::distill;
  if (saves && config.checkpoint.async) {
    plan.snapshot += 3 * shard * accumulator;
    plan.snapshot += role.precision.error_feedback && !is_alone ? total * accumulator : 0;
  }
}

ActivationInput activation_input(const RunConfig& config, const RoleConfig& role,
                                 const parallel::ParallelDims& dims) {
  ActivationInput input;
  input.model = role.model;
  input.model.moe.wire = {role.precision.dispatch_comm, role.precision.combine_comm,
                          role.precision.fp8_format};
  input.model.storage = {role.precision.store_activations, role.precision.fp8_format};
  input.dims = dims;
  input.compute = role.precision.compute;
  const bool is_generation = config.command == Command::generate;
  input.sequences = is_generation ? 1 : resolve_micro_batch(config, role, dims);
  input.seq = is_generation ? role.model.max_seq : config.batch.seq;
  input.pass = is_trained(config, role) ? PassKind::training : PassKind::forward_only;
  if (has_students(config.command) && role.kind == parallel::RoleKind::teacher) {
    std::int64_t payload = 0;
    for (std::size_t i = 1; i < config.roles.size(); ++i) {
      payload = std::max(payload, signal_bytes(config, config.roles[i]).payload);
    }
    input.signal_bytes = input.sequences * input.seq * payload / dims.tp;
  }
  if (is_student(config, role)) {
    const bool is_dense = std::ranges::any_of(make_phases(config), [](const distill::Phase& phase) {
      return phase.codec.kind == distill::PayloadKind::full ||
             phase.codec.kind == distill::PayloadKind::hidden;
    });
    input.teacher_columns =
        is_dense ? parallel::block_of(config.roles.front().model.vocab_size, dims.tp, 0).count : 0;
    // The teacher's states in the accumulation type, the projected ones, their difference and its gradient.
    input.state_elements = static_cast<std::int64_t>(hidden_pairs(config, role).size()) *
                           (2 * config.roles.front().model.hidden + role.model.hidden);
  }
  return input;
}

}  // namespace

std::vector<std::pair<std::string_view, std::int64_t>> MemoryPlan::parts() const {
  return {{"program", program},
          {"parameters", parameters},
          {"gradients", gradients},
          {"optimizer", optimizer},
          {"snapshot", snapshot},
          {"signals", link},
          {"key_values", key_values},
          {"exchange", std::max<std::int64_t>(exchange - activations.peak, 0)},
          {"activations", activations.peak}};
}

bool is_trained(const RunConfig& config, const RoleConfig& role) {
  const bool is_training = config.command == Command::train || has_students(config.command) ||
                           config.command == Command::bench_step ||
                           config.command == Command::bench_checkpoint;
  return is_training && !role.frozen;
}

std::vector<std::int64_t> extra_parameters(const RunConfig& config, const RoleConfig& role) {
  std::vector<std::int64_t> sizes;
  if (is_student(config, role) && config.roles.front().model.hidden != role.model.hidden) {
    sizes.assign(hidden_pairs(config, role).size(), config.roles.front().model.hidden * role.model.hidden);
  }
  return sizes;
}

MemoryPlan plan_memory(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims) {
  MemoryPlan plan;
  const std::vector<ParameterStorage> storages =
      parameter_storages(role.model, dims, 0, extra_parameters(config, role));
  for (const ParameterStorage& storage : storages) {
    if (is_trained(config, role)) {
      add_storage(plan, config, role, storage);
    } else {
      plan.parameters += storage.layout.total() * compute_bytes(role.precision.compute);
    }
  }
  ActivationInput input = activation_input(config, role, dims);
  if (config.command == Command::generate) {
    const std::int64_t heads = parallel::block_of(role.model.kv_heads, dims.tp, 0).count;
    plan.key_values = config.generate.beams * role.model.max_seq * 2 * role.model.layers *
                      role.model.resolved_head_dim() * heads * compute_bytes(role.precision.compute);
  }
  const std::int64_t tokens = input.sequences * round_up(input.seq, dims.tp) / dims.tp;
  input.rows = even_rows(role.model, dims, tokens);
  plan.activations = plan_activations(input);
  input.rows = worst_rows(role.model, dims, tokens, input.seq);
  plan.worst = plan_activations(input);
  plan.link = link_memory(config, role, dims);
  return plan;
}

}  // namespace athanor::config
