#include "train/student_weights.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/state_dict.hpp"

namespace athanor::train {
namespace {

using checkpoint::SliceExtent;
using checkpoint::StoredTensor;
using parallel::ShardSpec;

constexpr std::int64_t window_elements = std::int64_t{1} << 24;
constexpr std::size_t num_windows = 3;

const StoredTensor* find(const checkpoint::CheckpointReader& reader, const std::string& name) {
  const auto found = reader.manifest().tensors.find(name);
  return found == reader.manifest().tensors.end() ? nullptr : &found->second;
}

std::int64_t product(const std::vector<std::int64_t>& sizes, std::size_t first) {
  std::int64_t result = 1;
  for (std::size_t d = first; d < sizes.size(); ++d) {
    result *= sizes[d];
  }
  return result;
}

// A stored tensor's box in the accumulation type.
at::Tensor read_stored(const checkpoint::CheckpointReader& reader, const std::string& name,
                       const StoredTensor& stored, const ShardSpec& box) {
  at::Tensor values = at::empty(box.local_shape, scalar_type(stored.type));
  reader.read({{name, stored.type, SliceExtent::whole_box(box), values.data_ptr()}});
  const at::ScalarType type = values.scalar_type();
  return type == at::kBFloat16 || type == at::kHalf ? values.to(at::kFloat) : values;
}

at::Tensor read_balance(const checkpoint::CheckpointReader& reader, const std::string& role,
                        const char* name) {
  const std::string full = role + "/balance/" + name;
  const StoredTensor* stored = find(reader, full);
  return stored == nullptr ? at::Tensor()
                           : read_stored(reader, full, *stored, ShardSpec::whole(stored->shape));
}

// The plan, each rank working out its share of it.
distill::StudentPlan share_plan(const Trainer& trainer, const distill::WeightSource& source,
                                const ShrinkOptions& options) {
  const parallel::Communicator& role = trainer.grid().role();
  distill::StudentPlan plan = distill::start_plan(
      describe_model(options.source), describe_model(trainer.options().role.model), options.reduction);
  if (distill::needs_hidden_scores(plan)) {
    const std::int64_t parts = distill::num_hidden_parts(plan);
    at::Tensor scores = at::zeros({parts, 2, plan.source.hidden}, at::kDouble);
    parallel::run_agreed(role, [&] {
      for (std::int64_t part = role.rank(); part < parts; part += role.size()) {
        scores[part].copy_(distill::score_hidden_part(plan, part, source));
      }
    });
    parallel::all_reduce_(scores, parallel::ReduceOp::sum, role, parallel::Traffic::other);
    distill::choose_hidden(plan, scores);
  }
  const std::int64_t layers = plan.student.num_layers();
  for (std::int64_t first = 0; first < layers; first += role.size()) {
    std::string own;
    parallel::run_agreed(role, [&] {
      if (const std::int64_t layer = first + role.rank(); layer < layers) {
        own = distill::encode_layer_plan(distill::plan_layer(plan, layer, source));
      }
    });
    for (const std::string& bytes : parallel::all_gather_strings(own, role)) {
      if (!bytes.empty()) {
        plan.layer_plans.push_back(distill::decode_layer_plan(bytes));
      }
    }
  }
  return plan;
}

bool is_of_the_model(const parallel::Parameter& parameter) {
  return !parameter.name.starts_with("distill.");
}

void write_weights(Trainer& trainer, const distill::StudentPlan& plan, const distill::WeightSource& source) {
  const at::NoGradGuard no_grad;
  std::string name;
  at::Tensor values;
  const auto flat_values = [&](const parallel::Parameter& parameter) {
    if (parameter.name != name) {
      values = distill::make_student_tensor(plan, parameter.name, parameter.shard, source).view(-1);
      name = parameter.name;
    }
    return values;
  };
  for (const optim::OwnedState& entry : trainer.optimizer().owned_state()) {
    if (is_of_the_model(*entry.parameter)) {
      at::Tensor master = entry.master;
      master.copy_(flat_values(*entry.parameter).narrow(0, entry.first, entry.count));
    }
  }
  for (const auto& parameter : trainer.parameters().all()) {
    if (!parameter->trainable && is_of_the_model(*parameter)) {
      parameter->value.view(-1).copy_(flat_values(*parameter));
    }
  }
}

// Routing biases go with the experts they were found for.
void take_biases(const distill::StudentPlan& plan, const at::Tensor& source_PE, at::Tensor& bias_PE) {
  if (!source_PE.defined() || bias_PE.numel() == 0) {
    return;
  }
  for (std::size_t layer = 0; layer < plan.layer_plans.size(); ++layer) {
    if (!plan.student.sparse[layer]) {
      continue;
    }
    const distill::LayerPlan& layer_plan = plan.layer_plans[layer];
    for (std::size_t expert = 0; expert < layer_plan.experts.size(); ++expert) {
      double bias = 0.0;
      for (const distill::ExpertPart& part : layer_plan.experts[expert].parts) {
        bias += part.weight * source_PE[layer_plan.source][part.expert].item<double>();
      }
      bias_PE[static_cast<std::int64_t>(layer)][static_cast<std::int64_t>(expert)] = bias;
    }
  }
}

}  // namespace

distill::ModelShape describe_model(const model::TransformerConfig& config) {
  distill::ModelShape shape;
  shape.vocab_size = config.vocab_size;
  shape.hidden = config.hidden;
  shape.heads = config.heads;
  shape.kv_heads = config.kv_heads;
  shape.head_dim = config.resolved_head_dim();
  shape.qk_norm = config.qk_norm;
  shape.rope_theta = config.rope_theta;
  shape.tie_embeddings = config.tie_embeddings;
  shape.ffn = config.ffn;
  const moe::MoeOptions& moe = config.moe;
  if (moe.num_experts > 0) {
    shape.experts = moe.num_experts;
    shape.expert_ffn = moe.ffn;
    shape.shared_ffn = moe.shared_experts * moe.ffn;
    shape.expert_groups = moe.group_top_k > 0 ? moe.groups : 1;
    shape.sigmoid_scores = moe.score == moe::RouterScore::sigmoid;
  }
  for (const model::LayerSpec& layer : model::resolve_layers(config)) {
    shape.sparse.push_back(layer.ffn == model::FfnKind::sparse);
  }
  return shape;
}

void check_shrink(const ShrinkOptions& options, const model::TransformerConfig& student,
                  const checkpoint::Manifest& stored, const std::string& tokenizer) {
  distill::start_plan(describe_model(options.source), describe_model(student), options.reduction);
  const std::string theirs = stored.data.is_object() ? stored.data.value("tokenizer", "") : "";
  if (!theirs.empty() && !tokenizer.empty() && theirs != tokenizer) {
    throw base::ConfigError(
        "data.tokenizer (its content is {}, that of the model of init {}: embeddings would be of other "
        "tokens) "
        "use the tokenizer of that checkpoint",
        tokenizer, theirs);
  }
}

std::string describe_shrink(const ShrinkOptions& options) {
  const std::string layers = options.reduction.layers.empty()
                                 ? "spread"
                                 : fmt::format("{}", fmt::join(options.reduction.layers, ","));
  return fmt::format("shrunk (layers {}; experts {})", layers,
                     options.reduction.experts == distill::ExpertReduction::merge ? "merged" : "chosen");
}

std::string choose_source_role(const checkpoint::CheckpointReader& reader, const std::string& own) {
  const std::vector<checkpoint::StoredRole>& roles = reader.manifest().roles;
  if (roles.size() == 1) {
    return roles.front().name;
  }
  for (const std::string& name : {std::string("teacher"), own}) {
    if (reader.manifest().find_role(name) != nullptr) {
      return name;
    }
  }
  throw base::CheckpointError("{} has neither a role teacher nor {} (it holds {} others) give another init",
                              reader.folder(), own, roles.size());
}

void check_same_shapes(const Trainer& trainer, const checkpoint::CheckpointReader& reader) {
  const std::vector<checkpoint::StoredRole>& roles = reader.manifest().roles;
  const std::string role = roles.size() == 1 ? roles.front().name : trainer.options().role.name;
  if (reader.manifest().find_role(role) == nullptr) {
    return;  // reading says which there are
  }
  for (const auto& parameter : trainer.parameters().all()) {
    const StoredTensor* stored = find(reader, role + "/parameters/" + parameter->name);
    if (!is_of_the_model(*parameter) ||
        (stored != nullptr && stored->shape == parameter->shard.global_shape)) {
      continue;
    }
    throw base::CheckpointError(
        "{}: {} of {} is [{}] there (the model needs [{}]) give a checkpoint of the model's own shape, or "
        "init_mode=shrink to start from a larger model",
        reader.folder(), parameter->name, role,
        stored == nullptr ? "absent" : fmt::format("{}", fmt::join(stored->shape, ", ")),
        fmt::join(parameter->shard.global_shape, ", "));
  }
}

CheckpointWeights::CheckpointWeights(const checkpoint::CheckpointReader& reader, const ShrinkOptions& options)
    : reader_(reader),
      role_(options.role),
      sparse_(describe_model(options.source).sparse),
      counts_LE_(read_balance(reader, options.role, "previous_counts")) {}

at::Tensor CheckpointWeights::read_box(const std::string& name, const ShardSpec& box) const {
  const std::string full = role_ + "/parameters/" + name;
  const StoredTensor* stored = find(reader_, full);
  if (stored == nullptr || stored->shape != box.global_shape) {
    throw base::CheckpointError(
        "{}: tensor {} is [{}] (its configuration says [{}]) the checkpoint is damaged, or holds no weights "
        "of "
        "a frozen role: name the one that role started from",
        reader_.folder(), full,
        stored == nullptr ? "absent" : fmt::format("{}", fmt::join(stored->shape, ", ")),
        fmt::join(box.global_shape, ", "));
  }
  return read_stored(reader_, full, *stored, box);
}

const CheckpointWeights::Window& CheckpointWeights::window(const std::string& name,
                                                           const std::vector<std::int64_t>& shape,
                                                           std::int64_t first, std::int64_t count) const {
  const auto has_rows = [&](const Window& window) {
    return window.name == name && window.first <= first &&
           first + count <= window.first + window.rows.size(0);
  };
  const auto found = std::ranges::find_if(windows_, has_rows);
  if (found != windows_.end()) {
    std::rotate(windows_.begin(), found, found + 1);
    return windows_.front();
  }
  // Windows lie side by side; rows that reach into two of them get one of their own.
  const std::int64_t rows = std::max<std::int64_t>(window_elements / product(shape, 1), 1);
  const std::int64_t aligned = first / rows * rows;
  const std::int64_t begin = first + count <= aligned + rows ? aligned : first;
  ShardSpec box = ShardSpec::slice(shape, 0, begin, std::min(rows, shape[0] - begin));
  windows_.insert(windows_.begin(), {name, begin, read_box(name, box)});
  windows_.resize(std::min(windows_.size(), num_windows));
  return windows_.front();
}

at::Tensor CheckpointWeights::read(const std::string& name, const ShardSpec& box) const {
  const std::int64_t count = box.local_shape[0];
  if (box.local_numel() == 0 || count * product(box.global_shape, 1) > window_elements) {
    return read_box(name, box);
  }
  const Window& kept = window(name, box.global_shape, box.offset[0], count);
  at::Tensor part = kept.rows.narrow(0, box.offset[0] - kept.first, count);
  for (std::size_t d = 1; d < box.local_shape.size(); ++d) {
    part = part.narrow(static_cast<std::int64_t>(d), box.offset[d], box.local_shape[d]);
  }
  return part.clone(at::MemoryFormat::Contiguous);
}

std::vector<double> CheckpointWeights::expert_uses(std::int64_t layer) const {
  if (!counts_LE_.defined()) {
    return {};
  }
  const auto row = std::count(sparse_.begin(), sparse_.begin() + layer, true);
  const at::Tensor counts = counts_LE_[row].to(at::kDouble).contiguous();
  const auto* data = counts.const_data_ptr<double>();
  return {data, data + counts.numel()};
}

at::Tensor CheckpointWeights::biases() const {
  const at::Tensor biases = read_balance(reader_, role_, "bias");
  return biases.defined() ? biases.to(at::kDouble) : biases;
}

void start_from_larger(Trainer& trainer, const checkpoint::CheckpointReader& reader,
                       const ShrinkOptions& options) {
  const parallel::Communicator& role = trainer.grid().role();
  std::unique_ptr<CheckpointWeights> source;
  parallel::run_agreed(role, [&] { source = std::make_unique<CheckpointWeights>(reader, options); });
  const distill::StudentPlan plan = share_plan(trainer, *source, options);
  TrainState state = trainer.state();
  parallel::run_agreed(role, [&] {
    write_weights(trainer, plan, *source);
    take_biases(plan, source->biases(), state.balance.bias_PE);
  });
  trainer.restore(std::move(state));
  if (role.rank() == 0) {
    base::log_info("{}: starts from {} of {}: layers {}, hidden {} of {}, heads {} of {}",
                   trainer.options().role.name, options.role, reader.folder(), fmt::join(plan.layers, ","),
                   plan.student.hidden, plan.source.hidden, plan.student.heads, plan.source.heads);
  }
}

}  // namespace athanor::train
