// Fewer experts: the most used ones, or means of similar ones.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill::student_init {
namespace {

double sum_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

// One expert's gate and up rows [2, F, kept D] and down columns [kept D, F].
ExpertWeights read_expert(const StudentPlan& plan, std::int64_t layer, const ExpertPart& part,
                          const WeightSource& source) {
  const ModelShape& shape = plan.source;
  Indices rows = part.channels;
  for (const std::int64_t channel : part.channels) {
    rows.push_back(shape.expert_ffn + channel);
  }
  const at::Tensor gate_up =
      gather(source, layer_name(layer, "moe.experts.gate_up"), tensor_shape(shape, "moe.experts.gate_up"),
             {{part.expert}, rows, plan.hidden});
  const at::Tensor down =
      gather(source, layer_name(layer, "moe.experts.down"), tensor_shape(shape, "moe.experts.down"),
             {{part.expert}, plan.hidden, part.channels});
  const auto width = static_cast<std::int64_t>(part.channels.size());
  return {gate_up.view({2, width, gate_up.size(2)}), down[0]};
}

at::Tensor read_router(const StudentPlan& plan, std::int64_t layer, const WeightSource& source) {
  return gather(source, layer_name(layer, "moe.router.weight"),
                tensor_shape(plan.source, "moe.router.weight"), {all_of(plan.source.experts), plan.hidden});
}

// How much each expert is used, or by its weights should be.
std::vector<double> find_uses(const StudentPlan& plan, std::int64_t layer, const at::Tensor& router,
                              const std::vector<double>& gain, const WeightSource& source) {
  std::vector<double> uses = source.expert_uses(layer);
  if (std::ranges::any_of(uses, [](double use) { return use > 0.0; })) {
    ATHANOR_CHECK(static_cast<std::int64_t>(uses.size()) == plan.source.experts, "{} uses of {} experts",
                  uses.size(), plan.source.experts);
    return uses;
  }
  uses = row_squares(router, gain);
  for (std::size_t expert = 0; expert < uses.size(); ++expert) {
    const ExpertWeights weights =
        read_expert(plan, layer, whole_expert(plan, static_cast<std::int64_t>(expert)).parts[0], source);
    const std::vector<double> rows = row_squares(weights.gate_up_2FD.flatten(0, 1), gain);
    const std::vector<double> columns = row_squares(weights.down_DF);
    uses[expert] = std::sqrt(uses[expert] * sum_of(rows) * sum_of(columns));
  }
  return uses;
}

double cosine(const at::Tensor& a, const at::Tensor& b, const std::vector<double>& gain) {
  const std::vector<double> x = to_doubles(a);
  const std::vector<double> y = to_doubles(b);
  double xy = 0.0;
  double xx = 0.0;
  double yy = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double square = gain[i] * gain[i];
    xy += x[i] * y[i] * square;
    xx += x[i] * x[i] * square;
    yy += y[i] * y[i] * square;
  }
  return xx > 0.0 && yy > 0.0 ? xy / std::sqrt(xx * yy) : 0.0;
}

// For each channel of `reference` the channel of `other` that is most like it, every one taken once:
// pairs in falling order of cosine.
Indices match_channels(const ExpertWeights& reference, const ExpertWeights& other,
                       const std::vector<double>& gain) {
  const at::Tensor gains = at::tensor(gain, at::kDouble);
  const auto normalised = [&](const ExpertWeights& weights) {
    const at::Tensor rows = weights.gate_up_2FD.to(at::kDouble) * gains;
    const at::Tensor all_F3D = at::cat({rows[0], rows[1], weights.down_DF.to(at::kDouble).t()}, 1);
    return all_F3D / all_F3D.norm(2, {1}, true).clamp_min(1e-300);
  };
  const at::Tensor similarity_FF = at::mm(normalised(reference), normalised(other).t());
  const std::int64_t width = similarity_FF.size(0);
  const auto* similarity = similarity_FF.const_data_ptr<double>();
  Indices order = all_of(width * width);
  std::ranges::stable_sort(order,
                           [&](std::int64_t a, std::int64_t b) { return similarity[a] > similarity[b]; });
  Indices match(static_cast<std::size_t>(width), -1);
  std::vector<bool> taken(static_cast<std::size_t>(width), false);
  for (const std::int64_t pair : order) {
    const auto row = static_cast<std::size_t>(pair / width);
    const auto column = static_cast<std::size_t>(pair % width);
    if (match[row] < 0 && !taken[column]) {
      match[row] = static_cast<std::int64_t>(column);
      taken[column] = true;
    }
  }
  return match;
}

// Experts of one group into `count` of them.
class Reduction {
 public:
  Reduction(const StudentPlan& plan, std::int64_t layer, const WeightSource& source)
      : plan_(plan),
        layer_(layer),
        source_(source),
        gain_(kept_gain(plan, layer_name(layer, "ffn_norm.weight"), source)),
        router_(read_router(plan, layer, source)),
        uses_(find_uses(plan, layer, router_, gain_, source)) {}

  void reduce(std::int64_t first, std::int64_t size, std::int64_t count, ReducedExperts& result) const {
    const auto begin = uses_.begin() + first;
    Indices kept = largest({begin, begin + size}, count);
    for (std::int64_t& expert : kept) {
      expert += first;
    }
    std::vector<Indices> clusters;
    for (const std::int64_t expert : kept) {
      clusters.push_back({expert});
    }
    if (plan_.experts == ExpertReduction::merge) {
      for (std::int64_t expert = first; expert < first + size; ++expert) {
        if (!std::ranges::binary_search(kept, expert)) {
          clusters[most_similar(expert, kept)].push_back(expert);
        }
      }
    }
    for (const Indices& cluster : clusters) {
      add(cluster, result);
    }
  }

 private:
  double use(std::int64_t expert) const { return uses_[static_cast<std::size_t>(expert)]; }

  std::size_t most_similar(std::int64_t expert, const Indices& kept) const {
    std::size_t best = 0;
    double best_cosine = -2.0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const double value = cosine(router_[expert], router_[kept[i]], gain_);
      if (value > best_cosine) {
        best = i;
        best_cosine = value;
      }
    }
    return best;
  }

  void add(const Indices& cluster, ReducedExperts& result) const {
    double total = 0.0;
    for (const std::int64_t expert : cluster) {
      total += use(expert);
    }
    ExpertPlan merged;
    ExpertWeights reference;
    for (const std::int64_t expert : cluster) {
      ExpertPart part = whole_expert(plan_, expert).parts[0];
      if (cluster.size() > 1) {
        part.weight = total > 0.0 ? use(expert) / total : 1.0 / static_cast<double>(cluster.size());
        const ExpertWeights weights = read_expert(plan_, layer_, part, source_);
        if (merged.parts.empty()) {
          reference = weights;
        } else {
          part.channels = match_channels(reference, weights, gain_);
        }
      }
      merged.parts.push_back(std::move(part));
    }
    result.experts.push_back(std::move(merged));
    result.uses.push_back(total);
  }

  const StudentPlan& plan_;
  std::int64_t layer_;
  const WeightSource& source_;
  std::vector<double> gain_;
  at::Tensor router_;
  std::vector<double> uses_;
};

}  // namespace

ExpertPlan whole_expert(const StudentPlan& plan, std::int64_t expert) {
  return {{{expert, 1.0, all_of(plan.source.expert_ffn)}}, 1.0};
}

Indices rotary_channels(std::int64_t source, std::int64_t student) {
  Indices channels;
  for (const std::int64_t half : {0, 1}) {
    for (std::int64_t pair = 0; pair < student / 2; ++pair) {
      channels.push_back(half * (source / 2) + (2 * pair * source + student) / (2 * student));
    }
  }
  return channels;
}

std::vector<double> channel_scores(const at::Tensor& gate_up_2FD, const at::Tensor& down_DF,
                                   const std::vector<double>& gain) {
  std::vector<double> scores = row_squares(gate_up_2FD[0].contiguous(), gain);
  const std::vector<double> up = row_squares(gate_up_2FD[1].contiguous(), gain);
  std::vector<double> down;
  add_column_squares(down_DF.contiguous(), {}, down);
  for (std::size_t f = 0; f < scores.size(); ++f) {
    scores[f] = std::sqrt(scores[f] * up[f] * down[f]);
  }
  return scores;
}

ExpertWeights expert_weights(const StudentPlan& plan, std::int64_t source_layer, const ExpertPlan& expert,
                             const WeightSource& source) {
  ExpertWeights sum;
  for (const ExpertPart& part : expert.parts) {
    const ExpertWeights weights = read_expert(plan, source_layer, part, source);
    if (expert.parts.size() == 1) {
      return weights;
    }
    const at::Tensor gate_up = weights.gate_up_2FD.to(at::kDouble) * part.weight;
    const at::Tensor down = weights.down_DF.to(at::kDouble) * part.weight;
    sum.gate_up_2FD = sum.gate_up_2FD.defined() ? sum.gate_up_2FD + gate_up : gate_up;
    sum.down_DF = sum.down_DF.defined() ? sum.down_DF + down : down;
  }
  return sum;
}

void keep_channels(const StudentPlan& plan, std::int64_t source_layer, std::int64_t width,
                   const WeightSource& source, ExpertPlan& expert) {
  if (static_cast<std::int64_t>(expert.parts.front().channels.size()) == width) {
    return;
  }
  const ExpertWeights weights = expert_weights(plan, source_layer, expert, source);
  const std::vector<double> gain = kept_gain(plan, layer_name(source_layer, "ffn_norm.weight"), source);
  const Indices kept = largest(channel_scores(weights.gate_up_2FD, weights.down_DF, gain), width);
  for (ExpertPart& part : expert.parts) {
    Indices channels;
    for (const std::int64_t channel : kept) {
      channels.push_back(part.channels[static_cast<std::size_t>(channel)]);
    }
    part.channels = std::move(channels);
  }
}

ReducedExperts reduce_experts(const StudentPlan& plan, std::int64_t source_layer, std::int64_t count,
                              const WeightSource& source) {
  ReducedExperts result;
  const std::int64_t experts = plan.source.experts;
  const Reduction reduction(plan, source_layer, source);
  // Routing that is limited to groups goes on with the same groups.
  const bool by_group =
      plan.student.expert_groups == plan.source.expert_groups && count == plan.student.experts;
  const std::int64_t groups = by_group ? plan.source.expert_groups : 1;
  for (std::int64_t group = 0; group < groups; ++group) {
    reduction.reduce(group * (experts / groups), experts / groups, count / groups, result);
  }
  return result;
}

}  // namespace athanor::distill::student_init
