// Which layers a student takes, and whether the source can give what it needs.
#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill {
namespace {

using base::ConfigError;

// Equally spaced, first and last included; half-way goes to the later one.
std::vector<std::int64_t> spread_layers(std::int64_t source, std::int64_t student) {
  std::vector<std::int64_t> layers;
  for (std::int64_t i = 0; i < student; ++i) {
    layers.push_back(student == 1 ? 0 : (2 * i * (source - 1) + student - 1) / (2 * (student - 1)));
  }
  return layers;
}

void check_layers(const std::vector<std::int64_t>& layers, std::int64_t source, std::int64_t student) {
  if (static_cast<std::int64_t>(layers.size()) != student) {
    throw ConfigError("init_layers={} (it has {} layers and model.layers={}) name one source layer for each",
                      fmt::join(layers, ","), layers.size(), student);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] < 0 || layers[i] >= source) {
      throw ConfigError(
          "init_layers={} (layer {} is out of range: the model of init has layers 0 to {}) "
          "use those",
          fmt::join(layers, ","), layers[i], source - 1);
    }
    if (i > 0 && layers[i] <= layers[i - 1]) {
      throw ConfigError("init_layers={} (layer {} comes after layer {}) name each once, in rising order",
                        fmt::join(layers, ","), layers[i], layers[i - 1]);
    }
  }
}

void check_at_most(const char* key, std::int64_t student, std::int64_t source) {
  if (student > source) {
    throw ConfigError(
        "{}={} (the model of init has {}, and init_mode=shrink only makes smaller) use at most that, or "
        "another init",
        key, student, source);
  }
}

void check_common(const ModelShape& source, const ModelShape& student) {
  if (student.vocab_size != source.vocab_size) {
    throw ConfigError(
        "model.vocab_size={} (the model of init has {}: its embeddings are of other tokens) use the same "
        "vocabulary",
        student.vocab_size, source.vocab_size);
  }
  check_at_most("model.layers", student.num_layers(), source.num_layers());
  check_at_most("model.hidden", student.hidden, source.hidden);
  if (student.tie_embeddings && !source.tie_embeddings) {
    throw ConfigError(
        "model.tie_embeddings=true (the model of init has an output head of its own, and one matrix cannot "
        "be both) use model.tie_embeddings=false");
  }
}

void check_attention(const ModelShape& source, const ModelShape& student) {
  check_at_most("model.heads", student.heads, source.heads);
  check_at_most("model.kv_heads", student.kv_heads, source.kv_heads);
  check_at_most("model.head_dim", student.head_dim, source.head_dim);
  const std::int64_t source_share = source.heads / source.kv_heads;
  if (student.heads / student.kv_heads > source_share) {
    throw ConfigError(
        "model.heads={} (with model.kv_heads={} that is {} query heads for each key/value head, and the "
        "model of init has {}) use fewer heads or more kv_heads",
        student.heads, student.kv_heads, student.heads / student.kv_heads, source_share);
  }
  if (student.qk_norm != source.qk_norm) {
    throw ConfigError(
        "model.qk_norm={} (the model of init was trained with {}, and its queries and keys work only that "
        "way) use the same",
        student.qk_norm, source.qk_norm);
  }
  if (student.rope_theta != source.rope_theta) {
    throw ConfigError(
        "model.rope_theta={} (the model of init was trained with {}: positions would turn otherwise) use "
        "the same",
        student.rope_theta, source.rope_theta);
  }
}

void check_sparse(const ModelShape& source, const ModelShape& student) {
  check_at_most("moe.experts", student.experts, source.experts);
  check_at_most("moe.ffn", student.expert_ffn, source.expert_ffn);
  check_at_most("moe.shared_experts * moe.ffn", student.shared_ffn, source.shared_ffn);
  if (student.shared_ffn == 0 && source.shared_ffn > 0) {
    throw ConfigError(
        "moe.shared_experts=0 (the model of init has shared experts of {} channels, which every token "
        "passes) give the student some too",
        source.shared_ffn);
  }
  if (student.sigmoid_scores != source.sigmoid_scores) {
    throw ConfigError("moe.score={} (the router of init was trained with {}) use the same",
                      student.sigmoid_scores ? "sigmoid" : "softmax",
                      source.sigmoid_scores ? "sigmoid" : "softmax");
  }
}

void check_ffn(const ModelShape& source, const ModelShape& student, std::int64_t layer,
               std::int64_t source_layer) {
  const bool from_sparse = source.sparse[static_cast<std::size_t>(source_layer)];
  if (student.sparse[static_cast<std::size_t>(layer)]) {
    if (!from_sparse) {
      throw ConfigError(
          "moe.experts={} (layer {} is sparse and layer {} of init is dense: one ffn does not make several "
          "experts) use moe.experts=0, or sparse layers in init_layers",
          student.experts, layer, source_layer);
    }
    check_sparse(source, student);
  } else if (from_sparse) {
    check_at_most("model.ffn", student.ffn, source.shared_ffn + source.experts * source.expert_ffn);
  } else {
    check_at_most("model.ffn", student.ffn, source.ffn);
  }
}

}  // namespace

StudentPlan start_plan(const ModelShape& source, const ModelShape& student,
                       const StudentInitOptions& options) {
  check_common(source, student);
  check_attention(source, student);
  StudentPlan plan;
  plan.source = source;
  plan.student = student;
  plan.experts = options.experts;
  plan.layers =
      options.layers.empty() ? spread_layers(source.num_layers(), student.num_layers()) : options.layers;
  check_layers(plan.layers, source.num_layers(), student.num_layers());
  for (std::int64_t layer = 0; layer < student.num_layers(); ++layer) {
    check_ffn(source, student, layer, plan.layers[static_cast<std::size_t>(layer)]);
  }
  plan.query_scale = std::sqrt(static_cast<double>(source.head_dim) / static_cast<double>(student.head_dim));
  if (!needs_hidden_scores(plan)) {
    plan.hidden = student_init::all_of(source.hidden);
  }
  return plan;
}

StudentPlan make_student_plan(const ModelShape& source, const ModelShape& student,
                              const StudentInitOptions& options, const WeightSource& weights) {
  StudentPlan plan = start_plan(source, student, options);
  if (needs_hidden_scores(plan)) {
    std::vector<at::Tensor> parts;
    for (std::int64_t part = 0; part < num_hidden_parts(plan); ++part) {
      parts.push_back(score_hidden_part(plan, part, weights));
    }
    choose_hidden(plan, at::stack(parts));
  }
  for (std::int64_t layer = 0; layer < student.num_layers(); ++layer) {
    plan.layer_plans.push_back(plan_layer(plan, layer, weights));
  }
  return plan;
}

}  // namespace athanor::distill
