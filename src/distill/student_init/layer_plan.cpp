// Where one layer's heads and channels come from.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill {
namespace {

using student_init::all_of;
using student_init::gather;
using student_init::Indices;
using student_init::largest;
using student_init::layer_name;

// Squared norms of an attention layer's parts, over the kept channels of the stream.
struct AttentionNorms {
  std::vector<double> q;  // of each row of q.weight
  std::vector<double> k;  // of each row of kv.weight[0]
  std::vector<double> v;
  std::vector<double> o;  // of each column of o.weight
};

AttentionNorms read_norms(const StudentPlan& plan, std::int64_t layer, const WeightSource& source) {
  const ModelShape& shape = plan.source;
  const std::vector<double> gain =
      student_init::kept_gain(plan, layer_name(layer, "attention_norm.weight"), source);
  const Indices queries = all_of(shape.heads * shape.head_dim);
  const Indices keys = all_of(shape.kv_heads * shape.head_dim);
  const auto part = [&](const char* name, const std::vector<Indices>& lists) {
    return gather(source, layer_name(layer, name), student_init::tensor_shape(shape, name), lists);
  };
  AttentionNorms norms;
  norms.q = student_init::row_squares(part("attention.q.weight", {queries, plan.hidden}), gain);
  norms.k = student_init::row_squares(part("attention.kv.weight", {{0}, keys, plan.hidden})[0], gain);
  norms.v = student_init::row_squares(part("attention.kv.weight", {{1}, keys, plan.hidden})[0], gain);
  student_init::add_column_squares(part("attention.o.weight", {plan.hidden, queries}), {}, norms.o);
  return norms;
}

double sum_of(const std::vector<double>& values, std::int64_t first, std::int64_t count) {
  double sum = 0.0;
  for (std::int64_t i = first; i < first + count; ++i) {
    sum += values[static_cast<std::size_t>(i)];
  }
  return sum;
}

std::vector<double> head_scores(const ModelShape& shape, const AttentionNorms& norms) {
  const std::int64_t width = shape.head_dim;
  std::vector<double> scores;
  for (std::int64_t head = 0; head < shape.heads; ++head) {
    const std::int64_t group = head / (shape.heads / shape.kv_heads);
    double squares = sum_of(norms.v, group * width, width) * sum_of(norms.o, head * width, width);
    if (!shape.qk_norm) {
      squares *= sum_of(norms.q, head * width, width) * sum_of(norms.k, group * width, width);
    }
    scores.push_back(std::sqrt(squares));
  }
  return scores;
}

// A key/value head that stays, and the query heads that stay with it.
struct KeptGroup {
  std::int64_t group = 0;
  Indices heads;
};

std::vector<KeptGroup> choose_groups(const StudentPlan& plan, const std::vector<double>& scores) {
  const std::int64_t share = plan.source.heads / plan.source.kv_heads;
  const std::int64_t kept_share = plan.student.heads / plan.student.kv_heads;
  std::vector<Indices> heads;
  std::vector<double> group_scores;
  for (std::int64_t group = 0; group < plan.source.kv_heads; ++group) {
    const auto first = scores.begin() + group * share;
    heads.push_back(largest({first, first + share}, kept_share));
    double sum = 0.0;
    for (std::int64_t& head : heads.back()) {
      head += group * share;
      sum += scores[static_cast<std::size_t>(head)];
    }
    group_scores.push_back(sum);
  }
  std::vector<KeptGroup> kept;
  for (const std::int64_t group : largest(group_scores, plan.student.kv_heads)) {
    kept.push_back({group, heads[static_cast<std::size_t>(group)]});
  }
  return kept;
}

Indices value_channels(const StudentPlan& plan, const AttentionNorms& norms, const KeptGroup& kept) {
  const std::int64_t width = plan.source.head_dim;
  std::vector<double> scores;
  for (std::int64_t c = 0; c < width; ++c) {
    double written = 0.0;
    for (const std::int64_t head : kept.heads) {
      written += norms.o[static_cast<std::size_t>(head * width + c)];
    }
    scores.push_back(std::sqrt(norms.v[static_cast<std::size_t>(kept.group * width + c)] * written));
  }
  return largest(scores, plan.student.head_dim);
}

void append(Indices& rows, std::int64_t first, const Indices& channels) {
  for (const std::int64_t channel : channels) {
    rows.push_back(first + channel);
  }
}

void plan_attention(const StudentPlan& plan, const WeightSource& source, LayerPlan& layer) {
  const ModelShape& from = plan.source;
  const ModelShape& to = plan.student;
  if (from.heads == to.heads && from.kv_heads == to.kv_heads && from.head_dim == to.head_dim) {
    layer.q_rows = layer.o_columns = all_of(from.heads * from.head_dim);
    layer.k_rows = layer.v_rows = all_of(from.kv_heads * from.head_dim);
    return;
  }
  const AttentionNorms norms = read_norms(plan, layer.source, source);
  const Indices turning = student_init::rotary_channels(from.head_dim, to.head_dim);
  for (const KeptGroup& kept : choose_groups(plan, head_scores(from, norms))) {
    const Indices values = value_channels(plan, norms, kept);
    append(layer.k_rows, kept.group * from.head_dim, turning);
    append(layer.v_rows, kept.group * from.head_dim, values);
    for (const std::int64_t head : kept.heads) {
      append(layer.q_rows, head * from.head_dim, turning);
      append(layer.o_columns, head * from.head_dim, values);
    }
  }
}

// Channels of a dense layer, or of the shared experts.
Indices choose_channels(const StudentPlan& plan, std::int64_t layer, const std::string& prefix,
                        std::int64_t from, std::int64_t to, const WeightSource& source) {
  if (from == to) {
    return all_of(from);
  }
  const auto read = [&](const std::string& name, const std::vector<Indices>& lists) {
    return gather(source, layer_name(layer, name), student_init::tensor_shape(plan.source, name), lists);
  };
  const at::Tensor gate_up = read(prefix + "gate_up.weight", {{0, 1}, all_of(from), plan.hidden});
  const at::Tensor down = read(prefix + "down.weight", {plan.hidden, all_of(from)});
  const std::vector<double> gain =
      student_init::kept_gain(plan, layer_name(layer, "ffn_norm.weight"), source);
  return largest(student_init::channel_scores(gate_up, down, gain), to);
}

// A dense layer out of a sparse one: the shared experts' channels, then those of whole experts, the least
// used of which gives the rest.
void plan_dense_from_sparse(const StudentPlan& plan, const WeightSource& source, LayerPlan& layer) {
  const ModelShape& from = plan.source;
  const std::int64_t shared = std::min(from.shared_ffn, plan.student.ffn);
  layer.shared = choose_channels(plan, layer.source, "moe.shared.", from.shared_ffn, shared, source);
  const std::int64_t rest = plan.student.ffn - shared;
  if (rest == 0) {
    return;
  }
  const std::int64_t count = (rest + from.expert_ffn - 1) / from.expert_ffn;
  student_init::ReducedExperts reduced = student_init::reduce_experts(plan, layer.source, count, source);
  double total = 0.0;
  for (const double use : reduced.uses) {
    total += use;
  }
  std::size_t least = 0;
  for (std::size_t i = 0; i < reduced.experts.size(); ++i) {
    reduced.experts[i].gate = total > 0.0 ? reduced.uses[i] / total : 1.0 / static_cast<double>(count);
    least = reduced.uses[i] <= reduced.uses[least] ? i : least;
  }
  const std::int64_t last_width = rest - (count - 1) * from.expert_ffn;
  student_init::keep_channels(plan, layer.source, last_width, source, reduced.experts[least]);
  layer.experts = std::move(reduced.experts);
}

void plan_ffn(const StudentPlan& plan, bool sparse, const WeightSource& source, LayerPlan& layer) {
  const ModelShape& from = plan.source;
  const ModelShape& to = plan.student;
  const bool from_sparse = from.sparse[static_cast<std::size_t>(layer.source)];
  if (!from_sparse) {
    layer.channels = choose_channels(plan, layer.source, "ffn.", from.ffn, to.ffn, source);
    return;
  }
  if (!sparse) {
    plan_dense_from_sparse(plan, source, layer);
    return;
  }
  layer.shared = choose_channels(plan, layer.source, "moe.shared.", from.shared_ffn, to.shared_ffn, source);
  if (to.experts == from.experts) {
    for (const std::int64_t expert : all_of(from.experts)) {
      layer.experts.push_back(student_init::whole_expert(plan, expert));
    }
  } else {
    layer.experts = student_init::reduce_experts(plan, layer.source, to.experts, source).experts;
  }
  for (ExpertPlan& expert : layer.experts) {
    student_init::keep_channels(plan, layer.source, to.expert_ffn, source, expert);
  }
}

// Numbers one after another in their machine form: ranks of one job share it.
class Bytes {
 public:
  explicit Bytes(std::string bytes = "") : bytes_(std::move(bytes)) {}
  template <typename Number>
  void put(Number number) {
    bytes_.append(reinterpret_cast<const char*>(&number), sizeof(number));
  }
  template <typename Number>
  Number take() {
    ATHANOR_CHECK(at_ + sizeof(Number) <= bytes_.size(), "a layer's plan is cut off at byte {}", at_);
    Number number;
    std::memcpy(&number, bytes_.data() + at_, sizeof(Number));
    at_ += sizeof(Number);
    return number;
  }
  void put_list(const Indices& list) {
    put(static_cast<std::int64_t>(list.size()));
    for (const std::int64_t index : list) {
      put(index);
    }
  }
  Indices take_list() {
    Indices list(static_cast<std::size_t>(take<std::int64_t>()));
    for (std::int64_t& index : list) {
      index = take<std::int64_t>();
    }
    return list;
  }
  const std::string& text() const { return bytes_; }

 private:
  std::string bytes_;
  std::size_t at_ = 0;
};

constexpr auto list_members = {&LayerPlan::q_rows,    &LayerPlan::k_rows,   &LayerPlan::v_rows,
                               &LayerPlan::o_columns, &LayerPlan::channels, &LayerPlan::shared};

}  // namespace

LayerPlan plan_layer(const StudentPlan& plan, std::int64_t layer, const WeightSource& source) {
  LayerPlan result;
  result.source = plan.layers.at(static_cast<std::size_t>(layer));
  plan_attention(plan, source, result);
  plan_ffn(plan, plan.student.sparse[static_cast<std::size_t>(layer)], source, result);
  return result;
}

std::string encode_layer_plan(const LayerPlan& plan) {
  Bytes bytes;
  bytes.put(plan.source);
  for (const auto member : list_members) {
    bytes.put_list(plan.*member);
  }
  bytes.put(static_cast<std::int64_t>(plan.experts.size()));
  for (const ExpertPlan& expert : plan.experts) {
    bytes.put(expert.gate);
    bytes.put(static_cast<std::int64_t>(expert.parts.size()));
    for (const ExpertPart& part : expert.parts) {
      bytes.put(part.expert);
      bytes.put(part.weight);
      bytes.put_list(part.channels);
    }
  }
  return bytes.text();
}

LayerPlan decode_layer_plan(const std::string& text) {
  Bytes bytes(text);
  LayerPlan plan;
  plan.source = bytes.take<std::int64_t>();
  for (const auto member : list_members) {
    plan.*member = bytes.take_list();
  }
  plan.experts.resize(static_cast<std::size_t>(bytes.take<std::int64_t>()));
  for (ExpertPlan& expert : plan.experts) {
    expert.gate = bytes.take<double>();
    expert.parts.resize(static_cast<std::size_t>(bytes.take<std::int64_t>()));
    for (ExpertPart& part : expert.parts) {
      part.expert = bytes.take<std::int64_t>();
      part.weight = bytes.take<double>();
      part.channels = bytes.take_list();
    }
  }
  return plan;
}

}  // namespace athanor::distill
