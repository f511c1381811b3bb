#include "train/signal_plan.hpp"

#include <ATen/ATen.h>

#include <map>
#include <set>
#include <tuple>

#include "base/error.hpp"
#include "distill/codec.hpp"
#include "distill/link/link_fields.hpp"
#include "distill/signal_gap.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::train {
namespace {

using distill::FieldOptions;
using distill::Positions;

std::int64_t bytes_of(at::ScalarType type) {
  return static_cast<std::int64_t>(c10::elementSize(type));
}

// Collects the fields between one pair of roles.
class FieldList {
 public:
  FieldList(const SignalOptions& options, const StudentSignals& student)
      : options_(options),
        student_(student),
        accumulation_bytes_(bytes_of(parallel::accumulation_type(options.teacher_type))) {}

  std::vector<distill::Field> build(const StepSettings& settings, bool with_head) {
    const distill::Phase& phase = *settings.numbers.phase;
    add_token(field::ce, 1, accumulation_bytes_);
    if (phase.uses_kd()) {
      add_payload(phase.codec, static_cast<std::int64_t>(settings.temperatures.size()), with_head);
    }
    if (settings.measures_gap) {
      add_gap();
    }
    if (phase.uses_hidden()) {
      for (const distill::LayerPair& pair : student_.hidden_pairs) {
        add_state(pair.teacher_layer);
      }
    }
    if (phase.uses_attention()) {
      for (const distill::LayerPair& pair : student_.attention_pairs) {
        add_attention(pair.teacher_layer);
      }
    }
    return std::move(fields_);
  }

 private:
  void add_token(const std::string& name, std::int64_t columns, std::int64_t element_bytes) {
    fields_.push_back(
        distill::token_field({name, columns, element_bytes}, options_.teacher_layout, student_.layout));
  }

  void add_payload(const distill::CodecOptions& codec, std::int64_t temperatures, bool with_head) {
    const std::int64_t vocab = options_.teacher.vocab_size;
    const std::int64_t compute_bytes = bytes_of(options_.teacher_type);
    switch (codec.kind) {
      case distill::PayloadKind::none:
        break;
      case distill::PayloadKind::full:
        fields_.push_back(distill::column_sharded_field({field::full, vocab, compute_bytes},
                                                        options_.teacher_layout, student_.layout));
        break;
      case distill::PayloadKind::hidden:
        fields_.push_back(distill::hidden_field({field::hidden, options_.teacher.hidden, compute_bytes},
                                                options_.teacher_layout, student_.layout, Positions::all));
        if (with_head) {
          fields_.push_back(
              distill::sharded_weight_field({field::head, options_.teacher.hidden, compute_bytes}, vocab,
                                            options_.teacher_layout, student_.layout));
        }
        break;
      case distill::PayloadKind::topk:
        add_token(field::topk_ids, codec.top_k, 4);
        add_token(field::topk_logits, codec.top_k, accumulation_bytes_);
        add_token(field::topk_lse_1, 1, accumulation_bytes_);
        add_token(field::topk_lse, temperatures, accumulation_bytes_);
        add_token(field::topk_tail, temperatures, accumulation_bytes_);
        break;
      case distill::PayloadKind::sampled:
        add_token(field::sampled_ids, temperatures * codec.samples, 4);
        add_token(field::sampled_counts, temperatures * codec.samples, 4);
        add_token(field::sampled_entropy, temperatures, accumulation_bytes_);
        break;
    }
  }

  // Positions are numbered among the measured ones of a sample.
  void add_gap() {
    const auto measured = [&](distill::RoleLayout layout) {
      layout.seq = distill::num_measured(layout.seq, options_.gap_fraction);
      return layout;
    };
    fields_.push_back(distill::column_sharded_field(
        {field::gap_logits, options_.teacher.vocab_size, bytes_of(options_.teacher_type)},
        measured(options_.teacher_layout), measured(student_.layout)));
  }

  void add_state(std::int64_t layer) {
    if (!layers_.insert(layer).second) {
      return;
    }
    const std::int64_t width = options_.teacher.hidden;
    fields_.push_back(distill::hidden_field({field::state(layer), width, bytes_of(state_type(options_))},
                                            options_.teacher_layout, student_.layout, Positions::own_block));
    if (options_.state_wire == base::WireType::fp8) {
      const std::int64_t blocks = (width + distill::state_block - 1) / distill::state_block;
      fields_.push_back(distill::hidden_field({field::state(layer, true), blocks, 4}, options_.teacher_layout,
                                              student_.layout, Positions::own_block));
    }
  }

  void add_attention(std::int64_t layer) {
    if (!attention_layers_.insert(layer).second) {
      return;
    }
    const std::int64_t head_dim = options_.teacher.resolved_head_dim();
    const std::int64_t element = bytes_of(options_.teacher_type);
    for (const auto& [part, heads] :
         {std::pair('q', options_.teacher.heads), std::pair('k', options_.teacher.kv_heads)}) {
      fields_.push_back(
          distill::column_sharded_field({field::attention(layer, part), heads * head_dim, element},
                                        options_.teacher_layout, student_.layout));
    }
  }

  const SignalOptions& options_;
  const StudentSignals& student_;
  std::int64_t accumulation_bytes_ = 4;
  std::vector<distill::Field> fields_;
  std::set<std::int64_t> layers_;
  std::set<std::int64_t> attention_layers_;
};

}  // namespace

namespace field {

std::string state(std::int64_t layer, bool scale) {
  return fmt::format("layer.{}{}", layer, scale ? ".scale" : "");
}

std::string attention(std::int64_t layer, char part) {
  return fmt::format("attention.{}.{}", layer, part);
}

}  // namespace field

at::ScalarType state_type(const SignalOptions& options) {
  switch (options.state_wire) {
    case base::WireType::full:
      return parallel::accumulation_type(options.teacher_type);
    case base::WireType::bf16:
      return at::kBFloat16;
    case base::WireType::fp8:
      return at::kByte;
  }
  throw base::InternalError("no such wire type");
}

StepSettings settings_of(const SignalOptions& options, std::int64_t step) {
  distill::PhaseController controller(options.phases, options.total_steps, options.teacher.vocab_size);
  StepSettings settings;
  settings.numbers = controller.begin_step(step);
  settings.numbers.phase = &options.phases[static_cast<std::size_t>(settings.numbers.index)];
  settings.temperatures =
      settings.numbers.phase->temperature.in_use(settings.numbers.step_in_phase, options.domains);
  distill::add_temperatures(settings.temperatures, options.record_temperatures);
  settings.measures_gap =
      settings.numbers.phase->uses_kd() && options.gap_every > 0 && (step + 1) % options.gap_every == 0;
  return settings;
}

distill::PlanOfStep make_plan(const std::shared_ptr<SignalOptions>& options, std::size_t student) {
  using Key = std::tuple<std::int64_t, std::size_t, bool, bool>;  // phase, temperatures, head, gap
  auto plans = std::make_shared<std::map<Key, std::shared_ptr<const distill::LinkPlan>>>();
  return [options, student, plans](std::int64_t step) {
    const StepSettings settings = settings_of(*options, step);
    const bool is_first = step == options->first_step ||
                          settings_of(*options, step - 1).numbers.index != settings.numbers.index;
    const bool with_head = !options->teacher_frozen || is_first;
    const Key key{settings.numbers.index, settings.temperatures.size(), with_head, settings.measures_gap};
    std::shared_ptr<const distill::LinkPlan>& plan = (*plans)[key];
    if (!plan) {
      const StudentSignals& needs = options->students[student];
      plan = std::make_shared<distill::LinkPlan>(options->teacher_layout, needs.layout,
                                                 FieldList(*options, needs).build(settings, with_head));
    }
    return plan;
  };
}

}  // namespace athanor::train
