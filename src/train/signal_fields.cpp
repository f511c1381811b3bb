#include "train/signal_fields.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "base/error.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::train {
namespace {

using distill::signal_file::ElementType;
using distill::signal_file::FieldInfo;
using distill::signal_file::FieldScope;

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
    case at::kInt:
      return ElementType::i32;
    default:
      throw base::InternalError("no element type of a recording for {}", c10::toString(type));
  }
}

bool is_one_of(const std::string& name, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* other) { return name == other; });
}

ElementType type_of(const std::string& name, const SignalOptions& options) {
  if (is_one_of(name, {field::topk_ids, field::sampled_ids, field::sampled_counts})) {
    return ElementType::i32;
  }
  if (is_one_of(name, {field::full, field::hidden, field::head, field::gap_logits}) ||
      name.starts_with("attention.")) {
    return element_type(options.teacher_type);
  }
  if (name.starts_with("layer.")) {
    if (name.ends_with(".scale")) {
      return ElementType::f32;
    }
    if (options.state_wire == base::WireType::fp8) {
      return options.fp8_format == base::Fp8Format::e4m3 ? ElementType::f8_e4m3 : ElementType::f8_e5m2;
    }
    return element_type(state_type(options));
  }
  return element_type(parallel::accumulation_type(options.teacher_type));
}

}  // namespace

FieldInfo describe_field(const distill::Field& field, const SignalOptions& options,
                         std::int64_t num_temperatures) {
  FieldInfo info;
  info.name = field.name;
  info.type = type_of(field.name, options);
  info.scope = field.cadence == distill::Cadence::step ? FieldScope::step : FieldScope::sample;
  info.positions = field.shape.dims[1].count;
  info.columns = field.shape.dims[2].count;
  info.per_temperature = is_one_of(field.name, {field::topk_lse, field::topk_tail, field::sampled_ids,
                                                field::sampled_counts, field::sampled_entropy});
  if (info.per_temperature) {
    info.columns /= num_temperatures;
  }
  ATHANOR_CHECK(bytes_of(info.type) == field.element_bytes, "field {} has elements of {} bytes", field.name,
                field.element_bytes);
  return info;
}

FieldInfo describe_triple_field(const char* name, std::int64_t seq) {
  return {name, ElementType::i32, FieldScope::sample, seq, 1, false};
}

std::vector<FieldInfo> describe_fields(const SignalOptions& options, const distill::PlanOfStep& plan_of_step,
                                       std::int64_t first, std::int64_t end) {
  std::vector<FieldInfo> fields;
  for (const char* name : {field::tokens, field::labels, field::documents}) {
    fields.push_back(describe_triple_field(name, options.teacher_layout.seq));
  }
  std::set<const distill::LinkPlan*> seen;
  for (std::int64_t step = first; step < end; ++step) {
    const std::shared_ptr<const distill::LinkPlan> plan = plan_of_step(step);
    if (!seen.insert(plan.get()).second) {
      continue;
    }
    const auto temperatures = static_cast<std::int64_t>(settings_of(options, step).temperatures.size());
    for (const distill::Field& field : plan->fields()) {
      const FieldInfo info = describe_field(field, options, temperatures);
      const bool is_known = std::any_of(fields.begin(), fields.end(),
                                        [&](const FieldInfo& other) { return other.name == info.name; });
      if (!is_known) {
        fields.push_back(info);
      }
    }
  }
  return fields;
}

std::string key_of_field(const std::string& name) {
  if (name.starts_with("layer.")) {
    return "distill.hidden_layers";
  }
  if (name == field::gap_logits) {
    return "distill.gap_every";
  }
  return name.starts_with("attention.") ? "distill.attention_layers" : "distill.codec";
}

bool writes_field(const distill::Field& field, int role_rank) {
  const distill::Box& own = field.receiver[static_cast<std::size_t>(role_rank)].active;
  const auto before = field.receiver.begin() + role_rank;
  return !own.is_empty() &&
         std::none_of(field.receiver.begin(), before,
                      [&](const distill::FieldShare& share) { return share.active == own; });
}

}  // namespace athanor::train
