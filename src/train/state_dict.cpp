#include "train/state_dict.hpp"

#include <ATen/ATen.h>

#include <utility>

#include "base/error.hpp"

namespace athanor::train {
namespace {

using checkpoint::ElementType;
using checkpoint::SliceExtent;
using checkpoint::TensorSlice;

ElementType element_type(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return ElementType::f64;
    case at::kFloat:
      return ElementType::f32;
    case at::kBFloat16:
      return ElementType::bf16;
    case at::kHalf:
      return ElementType::f16;
    case at::kLong:
      return ElementType::i64;
    default:
      throw base::InternalError("tensors of type {} are not part of a checkpoint", at::toString(type));
  }
}

TensorSlice make_slice(std::string name, const SliceExtent& extent, const at::Tensor& data) {
  ATHANOR_CHECK(data.is_contiguous() && data.numel() == extent.count, "slice of {}", name);
  return {std::move(name), element_type(data.scalar_type()), extent, data.data_ptr()};
}

// A tensor that every rank of the role has in full.
SliceExtent whole(const at::Tensor& tensor) {
  return SliceExtent::whole_box(parallel::ShardSpec::whole(tensor.sizes().vec()));
}

template <typename Visit>
void for_each_balance_tensor(const std::string& role, const moe::BalanceState& balance, Visit visit) {
  for (const auto& [name, tensor] :
       {std::pair<const char*, const at::Tensor&>{"previous_counts", balance.previous_counts_LE},
        {"bias", balance.bias_PE}}) {
    if (tensor.defined() && tensor.numel() > 0) {
      visit(role + "/balance/" + name, tensor);
    }
  }
}

const checkpoint::StoredTensor* find(const checkpoint::CheckpointReader& reader, const std::string& name) {
  const auto found = reader.manifest().tensors.find(name);
  return found == reader.manifest().tensors.end() ? nullptr : &found->second;
}

// Memory for a part of a stored tensor, whose shape must be the model's.
at::Tensor stage(const checkpoint::CheckpointReader& reader, const std::string& name,
                 const SliceExtent& extent) {
  const checkpoint::StoredTensor* stored = find(reader, name);
  if (stored == nullptr) {
    throw base::CheckpointError("{} has no tensor {} (it is of another model) use the model's own checkpoint",
                                reader.folder(), name);
  }
  if (stored->shape != extent.box.global_shape) {
    throw base::CheckpointError("{}: tensor {} is [{}] (the model needs [{}]) use the model's own checkpoint",
                                reader.folder(), name, fmt::join(stored->shape, ", "),
                                fmt::join(extent.box.global_shape, ", "));
  }
  return at::empty({extent.count}, scalar_type(stored->type));
}

// Collects targets, so that one read fills them all.
class Staging {
 public:
  explicit Staging(const checkpoint::CheckpointReader& reader) : reader_(reader) {}
  at::Tensor add(const std::string& name, const SliceExtent& extent) {
    at::Tensor staged = stage(reader_, name, extent);
    slices_.push_back(make_slice(name, extent, staged));
    return staged;
  }
  void read() const { reader_.read(slices_); }

 private:
  const checkpoint::CheckpointReader& reader_;
  std::vector<TensorSlice> slices_;
};

std::string residual_name(const std::string& role, int holder, const parallel::Parameter& parameter) {
  return role + "/residual." + std::to_string(holder) + "/" + parameter.name;
}

// Stored residuals that a holder of a slice takes over: its own where there were as many holders, else the
// first one takes all, so that their sum stays.
std::vector<at::Tensor> stage_residuals(const checkpoint::CheckpointReader& reader, const std::string& role,
                                        const optim::ResidualState& entry, Staging& staging) {
  const auto name_of = [&](int holder) { return residual_name(role, holder, *entry.parameter); };
  int stored = 0;
  while (find(reader, name_of(stored)) != nullptr) {
    ++stored;
  }
  std::vector<at::Tensor> staged;
  for (int holder = 0; holder < stored; ++holder) {
    if (stored == entry.holders ? holder == entry.holder : entry.holder == 0) {
      staged.push_back(staging.add(name_of(holder), SliceExtent::whole_box(entry.parameter->shard)));
    }
  }
  return staged;
}

void stage_balance(const checkpoint::CheckpointReader& reader, const std::string& role, Staging& staging,
                   moe::BalanceState& balance) {
  for (auto [name, tensor] :
       {std::pair<const char*, at::Tensor*>{"previous_counts", &balance.previous_counts_LE},
        {"bias", &balance.bias_PE}}) {
    const std::string full = role + "/balance/" + name;
    if (tensor->defined() && tensor->numel() > 0 && find(reader, full) != nullptr) {
      *tensor = staging.add(full, whole(*tensor)).view(tensor->sizes());
    }
  }
}

std::int64_t integer(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer()) {
    throw base::CheckpointError("the checkpoint's state has no integer {} (damaged, or of another program)",
                                key);
  }
  return found->get<std::int64_t>();
}

nlohmann::json to_json(const GuardState& guard) {
  const auto& [losses, norms, bad_steps, first_bad, last_trip, trips, transients, repairs, rollbacks,
               passed_over, stage] = guard;
  return {{"losses", losses},           {"norms", norms},         {"bad_steps", bad_steps},
          {"first_bad", first_bad},     {"last_trip", last_trip}, {"trips", trips},
          {"transients", transients},   {"repairs", repairs},     {"rollbacks", rollbacks},
          {"passed_over", passed_over}, {"stage", stage}};
}

GuardState guard_from_json(const nlohmann::json& json) {
  GuardState guard;
  guard.losses = json.at("losses").get<std::vector<double>>();
  guard.norms = json.at("norms").get<std::vector<double>>();
  guard.stage = json.at("stage").get<std::string>();
  for (auto [name, value] : {std::pair{"bad_steps", &guard.bad_steps},
                             {"first_bad", &guard.first_bad},
                             {"last_trip", &guard.last_trip},
                             {"trips", &guard.trips},
                             {"transients", &guard.transients},
                             {"repairs", &guard.repairs},
                             {"rollbacks", &guard.rollbacks},
                             {"passed_over", &guard.passed_over}}) {
    *value = integer(json, name);
  }
  return guard;
}

}  // namespace

at::ScalarType scalar_type(ElementType type) {
  switch (type) {
    case ElementType::f64:
      return at::kDouble;
    case ElementType::f32:
      return at::kFloat;
    case ElementType::bf16:
      return at::kBFloat16;
    case ElementType::f16:
      return at::kHalf;
    case ElementType::i64:
      return at::kLong;
  }
  throw base::InternalError("no such element type");
}

std::vector<TensorSlice> written_slices(Trainer& trainer) {
  const std::string& role = trainer.options().role.name;
  std::vector<TensorSlice> slices;
  for (const optim::OwnedState& entry : trainer.optimizer().written_state()) {
    const SliceExtent extent{entry.parameter->shard, entry.first, entry.count};
    slices.push_back(make_slice(role + "/parameters/" + entry.parameter->name, extent, entry.master));
    slices.push_back(make_slice(role + "/exp_avg/" + entry.parameter->name, extent, entry.exp_avg));
    slices.push_back(make_slice(role + "/exp_avg_sq/" + entry.parameter->name, extent, entry.exp_avg_sq));
  }
  for (const optim::ResidualState& entry : trainer.optimizer().residual_state()) {
    slices.push_back(make_slice(residual_name(role, entry.holder, *entry.parameter),
                                SliceExtent::whole_box(entry.parameter->shard), entry.residual));
  }
  if (trainer.grid().role().rank() == 0) {
    for_each_balance_tensor(role, trainer.state().balance,
                            [&](const std::string& name, const at::Tensor& tensor) {
                              slices.push_back(make_slice(name, whole(tensor), tensor));
                            });
  }
  return slices;
}

checkpoint::StoredRole stored_role(Trainer& trainer) {
  const RoleOptions& role = trainer.options().role;
  const parallel::ParallelDims& dims = trainer.grid().dims();
  return {role.name,
          role.kind == parallel::RoleKind::teacher ? "teacher" : "student",
          {{"ranks", dims.num_ranks()},
           {"dp", dims.dp},
           {"tp", dims.tp},
           {"ep", dims.ep},
           {"zero", role.optim.zero}},
          scalars_to_json(trainer.state())};
}

nlohmann::json scalars_to_json(const TrainState& state) {
  // A new member of the state does not compile here until it is saved.
  const auto& [step, tokens, updates, loss_scale, balance, cursor, objective, guard] = state;
  const auto& [scale, clean_steps, consecutive_skips, total_skips, had_good_step] = loss_scale;
  const auto& [previous_counts, previous_tokens, bias] = balance;  // the tensors are slices
  const auto& [next_position] = cursor;
  return {{"step", step},
          {"tokens", tokens},
          {"updates", updates},
          {"loss_scale",
           {{"scale", scale},
            {"clean_steps", clean_steps},
            {"consecutive_skips", consecutive_skips},
            {"total_skips", total_skips},
            {"had_good_step", had_good_step}}},
          {"previous_tokens", previous_tokens},
          {"cursor", {{"next_position", next_position}}},
          {"objective", objective},
          {"guard", to_json(guard)}};
}

void scalars_from_json(const nlohmann::json& json, TrainState& state) {
  auto& [step, tokens, updates, loss_scale, balance, cursor, objective, guard] = state;
  auto& [scale, clean_steps, consecutive_skips, total_skips, had_good_step] = loss_scale;
  step = integer(json, "step");
  tokens = integer(json, "tokens");
  updates = integer(json, "updates");
  balance.previous_tokens = integer(json, "previous_tokens");
  try {
    const nlohmann::json& stored = json.at("loss_scale");
    scale = stored.at("scale").get<double>();
    clean_steps = integer(stored, "clean_steps");
    consecutive_skips = integer(stored, "consecutive_skips");
    total_skips = integer(stored, "total_skips");
    had_good_step = stored.at("had_good_step").get<bool>();
    cursor.next_position = integer(json.at("cursor"), "next_position");
    objective = json.at("objective").get<std::string>();
    guard = json.contains("guard") ? guard_from_json(json["guard"]) : GuardState{};  // older: had none
  } catch (const nlohmann::json::exception& error) {
    throw base::CheckpointError(
        "the checkpoint's state cannot be read ({}) it is damaged or of another program", error.what());
  }
}

StagedState::StagedState(Trainer& trainer, const checkpoint::CheckpointReader& reader) {
  const std::string& role = trainer.options().role.name;
  const checkpoint::StoredRole& stored = checkpoint::stored_role(reader, role);
  const bool has_state = !stored.state.is_null();
  state_ = trainer.state();
  Staging staging(reader);
  for (const optim::OwnedState& entry : trainer.optimizer().owned_state()) {
    const SliceExtent extent{entry.parameter->shard, entry.first, entry.count};
    const auto add = [&](const char* kind, const at::Tensor& target) {
      targets_.push_back(target);
      staged_.push_back(staging.add(role + "/" + kind + "/" + entry.parameter->name, extent));
    };
    add("parameters", entry.master);
    if (has_state) {
      add("exp_avg", entry.exp_avg);
      add("exp_avg_sq", entry.exp_avg_sq);
    }
  }
  std::vector<std::vector<at::Tensor>> residuals;  // of each entry: what is to be added up
  for (const optim::ResidualState& entry : trainer.optimizer().residual_state()) {
    residuals.push_back(stage_residuals(reader, role, entry, staging));
  }
  stage_balance(reader, role, staging, state_.balance);
  staging.read();
  std::size_t index = 0;
  for (const optim::ResidualState& entry : trainer.optimizer().residual_state()) {
    at::Tensor sum = at::zeros_like(entry.residual);
    for (const at::Tensor& residual : residuals[index++]) {
      sum.add_(residual);
    }
    targets_.push_back(entry.residual);
    staged_.push_back(sum);
  }
  if (has_state) {
    scalars_from_json(stored.state, state_);
  }
}

StagedState::StagedState(Trainer& trainer, const checkpoint::CheckpointReader& reader,
                         const InitialWeights& initial) {
  std::string role = initial.role.empty() ? trainer.options().role.name : initial.role;
  const std::vector<checkpoint::StoredRole>& roles = reader.manifest().roles;
  if (initial.role.empty() && roles.size() == 1) {
    role = roles.front().name;
  }
  checkpoint::stored_role_with_weights(reader, role);
  state_ = trainer.state();
  Staging staging(reader);
  const auto add = [&](const parallel::Parameter& parameter, const SliceExtent& extent,
                       const at::Tensor& target) {
    const std::string name = role + "/parameters/" + parameter.name;
    if (parameter.name.starts_with("distill.") && find(reader, name) == nullptr) {
      return;
    }
    targets_.push_back(target);
    staged_.push_back(staging.add(name, extent));
  };
  for (const optim::OwnedState& entry : trainer.optimizer().owned_state()) {
    add(*entry.parameter, {entry.parameter->shard, entry.first, entry.count}, entry.master);
  }
  for (const auto& parameter : trainer.parameters().all()) {
    if (!parameter->trainable) {
      add(*parameter, SliceExtent::whole_box(parameter->shard), parameter->value.view(-1));
    }
  }
  stage_balance(reader, role, staging, state_.balance);
  staging.read();
}

void StagedState::apply(Trainer& trainer) && {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < targets_.size(); ++i) {
    targets_[i].copy_(staged_[i]);
    staged_[i].reset();
  }
  trainer.restore(std::move(state_));
}

void load_weights(const checkpoint::CheckpointReader& reader, const std::string& role,
                  const parallel::ParameterMap& parameters, moe::BalanceState& balance) {
  checkpoint::stored_role_with_weights(reader, role);
  Staging staging(reader);
  std::vector<at::Tensor> staged;
  for (const auto& parameter : parameters.all()) {
    staged.push_back(
        staging.add(role + "/parameters/" + parameter->name, SliceExtent::whole_box(parameter->shard)));
  }
  stage_balance(reader, role, staging, balance);
  staging.read();
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < staged.size(); ++i) {
    parallel::Parameter& parameter = *parameters.all()[i];
    parameter.value.copy_(staged[i].view(parameter.shard.local_shape));
    staged[i].reset();
  }
}

}  // namespace athanor::train
