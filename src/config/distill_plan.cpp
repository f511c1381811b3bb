#include "config/distill_plan.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>

#include "base/error.hpp"
#include "config/distill_gates.hpp"
#include "config/ini.hpp"
#include "config/phase_settings.hpp"
#include "config/recording_plan.hpp"
#include "config/search_plan.hpp"
#include "config/value_text.hpp"
#include "data/dataset.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;
using distill::LayerPair;
using distill::Phase;

template <typename Number>
std::optional<Number> read_number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool is_whole = error == std::errc() && end == text.data() + text.size();
  return is_whole ? std::optional(value) : std::nullopt;
}

std::vector<std::string_view> split_at_colons(std::string_view text) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(colon + 1);
  }
}

// `list` is a number: so many pairs.
std::optional<std::int64_t> pair_count(const std::string& list) {
  return read_number<std::int64_t>(list);
}

bool has_pairs(const std::string& list) {
  return !split_list(list).empty() && pair_count(list) != 0;
}

std::vector<LayerPair> read_pairs(const std::string& list) {
  std::vector<LayerPair> pairs;
  for (const std::string& item : split_list(list)) {
    const std::vector<std::string_view> parts = split_at_colons(item);
    const auto student = read_number<std::int64_t>(parts[0]);
    const auto teacher = parts.size() > 1 ? read_number<std::int64_t>(parts[1]) : std::nullopt;
    const auto weight = parts.size() > 2 ? read_number<double>(parts[2]) : std::optional(1.0);
    if (!student || !teacher || !weight || parts.size() > 3) {
      throw ConfigError(
          "{} is no pair of layers (layers are counted from 0) give a number of pairs, or a list of "
          "student:teacher[:weight]",
          item);
    }
    pairs.push_back({*student, *teacher, *weight});
  }
  return pairs;
}

std::vector<LayerPair> make_pairs(const std::string& key, const std::string& list, const RunConfig& config,
                                  const RoleConfig& student) {
  if (!has_pairs(list)) {
    return {};
  }
  const std::int64_t student_layers = student.model.layers;
  const std::int64_t teacher_layers = config.roles.front().model.layers;
  try {
    if (const std::optional<std::int64_t> count = pair_count(list)) {
      return distill::uniform_pairs(*count, student_layers, teacher_layers);
    }
    return distill::checked_pairs(read_pairs(list), student_layers, teacher_layers);
  } catch (const ConfigError& error) {
    throw ConfigError("{}={} of the {}: {}", key, list, student.name, error.what());
  }
}

constexpr std::string_view feature_alignment = "feature_alignment";
constexpr std::string_view soft_label = "soft_label";
constexpr std::string_view joint = "joint";

// The stages by names and fractions, feature terms as shares of their weights.
std::vector<Phase> listed_phases(const std::string& list, const Phase& base) {
  const std::vector<Phase> preset = distill::phase_preset("three_stage", base);
  std::vector<Phase> phases;
  bool is_aligned = false;
  for (const std::string& item : split_list(list)) {
    const std::vector<std::string_view> parts = split_at_colons(item);
    const auto model = std::find_if(preset.begin(), preset.end(),
                                    [&](const Phase& phase) { return phase.name == parts[0]; });
    const auto number = [&](std::size_t part) {
      return part < parts.size() ? read_number<double>(parts[part]).value_or(std::nan("")) : 1.0;
    };
    const bool is_stage = model != preset.end() && (parts.size() == 2 || parts.size() == 3);
    if (!is_stage || !std::isfinite(number(1)) || !std::isfinite(number(2))) {
      throw ConfigError(
          "distill.phases={} ({} is no stage) use three_stage, kl_hidden_task, joint, or a list of "
          "kind:fraction[:learning-rate factor] with the kinds {}, {}, {}",
          list, item, feature_alignment, soft_label, joint);
    }
    Phase phase = model->name == joint && !is_aligned ? base : *model;
    phase.name = model->name;
    phase.fraction = number(1);
    phase.learning_rate_factor = number(2);
    is_aligned = is_aligned || model->name == feature_alignment;
    phases.push_back(std::move(phase));
  }
  return phases;
}

std::vector<Phase> named_phases(const std::string& text, const Phase& base) {
  if (text == "three_stage" || text == "kl_hidden_task") {
    return distill::phase_preset(text, base);
  }
  if (text == joint) {
    Phase phase = base;
    phase.name = joint;
    return {phase};
  }
  return listed_phases(text, base);
}

// Steps after which the temperature changes, so that a stage of `steps` goes through all its values.
std::int64_t spread_period(const distill::TemperatureSchedule& schedule, std::int64_t steps) {
  if (schedule.step_change >= 0.0) {
    return 0;
  }
  constexpr double rounding = 1e-9;
  const double changes = std::ceil((schedule.first - schedule.minimum) / -schedule.step_change - rounding);
  const double levels = std::max(changes, 0.0) + 1.0;
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(static_cast<double>(steps) / levels)));
}

// What the section says of a stage whose feature weights are shares of the usual mix.
void settle_phase(Phase& phase, const DistillSection& section, std::int64_t run_steps) {
  const distill::FeatureMix mix;
  const auto weigh = [&](distill::WeightSchedule& term, const distill::WeightSchedule& schedule,
                         double weight) {
    const double base = term.base * weight;
    term = schedule;
    term.base = base;
    term.period_steps = section.decay_period;
  };
  weigh(phase.hidden, section.hidden_schedule,
        has_pairs(section.hidden_layers) ? section.hidden_weight / mix.hidden : 0.0);
  weigh(phase.attention, section.attention_schedule,
        has_pairs(section.attention_layers) ? section.attention_weight / mix.attention : 0.0);
  phase.kd_loss = section.kd;
  phase.hidden_loss = section.hidden.kind;
  phase.attention_loss = section.attention_loss;
  phase.alpha = section.alpha;
  phase.temperature = section.temperature;
  phase.codec = section.codec;
  if (section.temperature.period_steps == 0) {
    if (section.temperature.step_change > 0.0) {
      throw ConfigError(
          "distill.temperature_step={} (with distill.temperature_period=0 the steps are spread down to "
          "distill.temperature_min) give a period, or a step of 0 or less",
          section.temperature.step_change);
    }
    const auto steps = std::llround(phase.fraction * static_cast<double>(run_steps));
    phase.temperature.period_steps = spread_period(section.temperature, steps);
  }
}

void check_terms(const Phase& phase, const RunConfig& config) {
  if (phase.uses_kd() || phase.ce.base > 0.0 || phase.uses_hidden() || phase.uses_attention()) {
    return;
  }
  throw ConfigError(
      "distill.phases={} (the stage {} is about hidden states and attention, and "
      "distill.hidden_layers={} with weight {}, distill.attention_layers={} with weight {} leave it nothing "
      "to learn) choose layers, or other stages",
      config.distill.phases, phase.name, config.distill.hidden_layers, config.distill.hidden_weight,
      config.distill.attention_layers, config.distill.attention_weight);
}

void check_precisions(const RunConfig& config) {
  const RoleConfig& teacher = config.roles.front();
  const bool is_f64 = teacher.precision.compute == base::ComputeType::f64;
  for (const RoleConfig& role : config.roles) {
    if ((role.precision.compute == base::ComputeType::f64) != is_f64) {
      throw ConfigError(
          "{}.precision.compute={} ({}.precision.compute={}: signals have one accumulation type, f64 or f32) "
          "use f64 in all roles or in none",
          role.name, to_text(role.precision.compute), teacher.name, to_text(teacher.precision.compute));
    }
  }
  if (is_f64 && config.distill.hidden_wire != base::WireType::full) {
    throw ConfigError("distill.hidden_wire={} (precision.compute=f64 sends full values only) use full",
                      to_text(config.distill.hidden_wire));
  }
}

void check_freezing(const RunConfig& config) {
  for (const RoleConfig& role : config.roles) {
    if (!runs(config, role)) {
      continue;
    }
    if (role.frozen && role.kind == parallel::RoleKind::student) {
      throw ConfigError("{}.frozen=true (a student is there to learn) only teacher.frozen can be true",
                        role.name);
    }
    const bool is_given_weights =
        !role.init.empty() || (config.run.resume != "auto" && config.run.resume != "never");
    if (role.frozen && !is_given_weights && config.command != Command::bench_stream) {
      throw ConfigError(
          "{}.frozen=true ({}.init is empty: its weights would stay random) name the checkpoint to load",
          role.name, role.name);
    }
  }
}

// Steps of one kind can be compared with each other.
void check_stages(const RunConfig& config) {
  const std::size_t stages = make_phases(config).size();
  if (config.command == Command::bench_stream && stages > 1) {
    throw ConfigError(
        "distill.phases={} (bench stream times steps of one kind, and this has {} stages) use joint, or one "
        "stage of another kind with fraction 1",
        config.distill.phases, stages);
  }
}

void check_vocabularies(const RunConfig& config) {
  const RoleConfig& teacher = config.roles.front();
  for (const RoleConfig& role : config.roles) {
    if (role.model.vocab_size != teacher.model.vocab_size) {
      throw ConfigError(
          "{}.model.vocab_size={} ({}.model.vocab_size={}: their distributions must be over the same tokens) "
          "give both one vocabulary",
          role.name, role.model.vocab_size, teacher.name, teacher.model.vocab_size);
    }
  }
}

void check_layer_maps(const RunConfig& config) {
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    hidden_pairs(config, config.roles[i]);
    attention_pairs(config, config.roles[i]);
  }
  if (!has_pairs(config.distill.attention_layers)) {
    return;
  }
  for (const RoleConfig& role : config.roles) {
    if (role.model.recompute && runs(config, role)) {
      throw ConfigError(
          "distill.attention_layers={} ({}.model.recompute=true throws the queries and keys away) set "
          "{}.model.recompute=false, or distill.attention_layers=0",
          config.distill.attention_layers, role.name, role.name);
    }
    const model::TransformerConfig& teacher = config.roles.front().model;
    const bool is_split_in_heads =
        teacher.heads % role.parallel.tp == 0 && teacher.kv_heads % role.parallel.tp == 0;
    if (role.kind == parallel::RoleKind::student && !is_split_in_heads) {
      throw ConfigError(
          "distill.attention_layers={} ({}.parallel.tp={}: each rank gets whole heads of the teacher, which "
          "has "
          "{} and {} of keys) use a tp that divides both, or distill.attention_layers=0",
          config.distill.attention_layers, role.name, role.parallel.tp, teacher.heads, teacher.kv_heads);
    }
  }
}

void check_domains(const RunConfig& config) {
  const std::vector<std::string> domains = train_domains(config);
  for (const auto& [domain, temperature] : config.distill.temperature.by_domain) {
    if (std::find(domains.begin(), domains.end(), domain) == domains.end()) {
      throw ConfigError(
          "distill.temperature_by_domain={} (data.train has no domain {}: it has {}) use those names",
          to_text(config.distill.temperature.by_domain), domain, fmt::join(domains, ", "));
    }
  }
}

}  // namespace

std::vector<Phase> make_phases(const RunConfig& config) {
  const distill::FeatureMix mix;
  Phase base;
  base.hidden.base = mix.hidden;
  base.attention.base = mix.attention;
  std::vector<Phase> phases = named_phases(config.distill.phases, base);
  std::vector<std::string> names;
  std::ranges::transform(phases, std::back_inserter(names), &Phase::name);
  check_phase_settings(config, names);
  for (Phase& phase : phases) {
    settle_phase(phase, section_of_stage(config, phase.name), config.train.steps);
    check_terms(phase, config);
  }
  // A vocabulary that is still to come from the tokenizer is checked when it is known.
  const std::int64_t vocab = config.roles.front().model.vocab_size;
  distill::validate(phases, vocab > 0 ? vocab : std::numeric_limits<std::int64_t>::max());
  return phases;
}

std::vector<LayerPair> hidden_pairs(const RunConfig& config, const RoleConfig& student) {
  return make_pairs("distill.hidden_layers", config.distill.hidden_layers, config, student);
}

std::vector<LayerPair> attention_pairs(const RunConfig& config, const RoleConfig& student) {
  return make_pairs("distill.attention_layers", config.distill.attention_layers, config, student);
}

std::vector<std::string> train_domains(const RunConfig& config) {
  std::vector<std::string> domains;
  for (const data::SourceSpec& source : data::parse_sources(config.data.train)) {
    if (std::find(domains.begin(), domains.end(), source.domain) == domains.end()) {
      domains.push_back(source.domain);
    }
  }
  return domains;
}

void validate_distill(const RunConfig& config) {
  ATHANOR_CHECK(config.roles.size() > 1, "a distill job has {} role", config.roles.size());
  validate_recording(config);
  check_vocabularies(config);
  check_precisions(config);
  check_freezing(config);
  check_layer_maps(config);
  check_domains(config);
  check_stages(config);
  validate_gates(config);
  validate_search(config);
}

}  // namespace athanor::config
