// A student's tensors, box by box, once it is planned where everything comes from.
#include <algorithm>
#include <charconv>
#include <functional>
#include <utility>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "distill/student_init.hpp"
#include "distill/student_init/weights.hpp"

namespace athanor::distill {
namespace {

using parallel::ShardSpec;
using student_init::gather;
using student_init::Indices;
using student_init::layer_name;
using student_init::part_of;
using student_init::tensor_shape;

at::Tensor scaled(at::Tensor values, double scale) {
  return scale == 1.0 ? values : values.mul_(scale);
}

// The part of a list that dimension `d` of a box covers.
Indices in_box(const Indices& list, const ShardSpec& box, std::size_t d) {
  return part_of(list, box.offset[d], box.local_shape[d]);
}

bool is_whole(const ShardSpec& box, std::size_t d) {
  return box.local_shape[d] == box.global_shape[d];
}

// Makes the tensors of one layer.
class LayerTensors {
 public:
  LayerTensors(const StudentPlan& plan, std::int64_t layer, const WeightSource& source)
      : plan_(plan), layer_(plan.layer_plans.at(static_cast<std::size_t>(layer))), source_(source) {}

  at::Tensor make(const std::string& name, const ShardSpec& box) const {
    if (name.ends_with("_norm.weight")) {
      return make_norm(name, box);
    }
    if (name.starts_with("attention.")) {
      return make_attention(name, box);
    }
    if (name == "moe.router.weight") {
      return make_router(box);
    }
    if (name.starts_with("moe.experts.")) {
      return make_experts(name, box);
    }
    if (name.starts_with("moe.shared.")) {
      return name == "moe.shared.down.weight"
                 ? dense_down("moe.shared.down.weight", layer_.shared, box)
                 : dense_gate_up("moe.shared.gate_up.weight", layer_.shared, box);
    }
    return make_dense(name, box);
  }

 private:
  at::Tensor read(const std::string& name, const std::vector<Indices>& lists) const {
    return gather(source_, layer_name(layer_.source, name), tensor_shape(plan_.source, name), lists);
  }

  at::Tensor make_norm(const std::string& name, const ShardSpec& box) const {
    if (!name.starts_with("attention.")) {
      return scaled(read(name, {in_box(plan_.hidden, box, 0)}), plan_.norm_scale);
    }
    const Indices channels = student_init::rotary_channels(plan_.source.head_dim, plan_.student.head_dim);
    return scaled(read(name, {in_box(channels, box, 0)}),
                  name == "attention.q_norm.weight" ? plan_.query_scale : 1.0);
  }

  at::Tensor make_attention(const std::string& name, const ShardSpec& box) const {
    if (name == "attention.q.weight") {
      return scaled(read(name, {in_box(layer_.q_rows, box, 0), in_box(plan_.hidden, box, 1)}),
                    plan_.source.qk_norm ? 1.0 : plan_.query_scale);
    }
    if (name == "attention.o.weight") {
      return read(name, {in_box(plan_.hidden, box, 0), in_box(layer_.o_columns, box, 1)});
    }
    std::vector<at::Tensor> parts;
    for (std::int64_t i = box.offset[0]; i < box.offset[0] + box.local_shape[0]; ++i) {
      const Indices& rows = i == 0 ? layer_.k_rows : layer_.v_rows;
      parts.push_back(read(name, {{i}, in_box(rows, box, 1), in_box(plan_.hidden, box, 2)}));
    }
    return at::cat(parts);
  }

  at::Tensor make_router(const ShardSpec& box) const {
    ATHANOR_CHECK(is_whole(box, 0) && is_whole(box, 1), "the router is whole on every rank");
    std::vector<at::Tensor> rows;
    for (const ExpertPlan& expert : layer_.experts) {
      rows.push_back(mean_of(expert, &LayerTensors::router_row));
    }
    return at::cat(rows);
  }

  at::Tensor make_experts(const std::string& name, const ShardSpec& box) const {
    ATHANOR_CHECK(is_whole(box, 1) && is_whole(box, 2), "experts are whole");
    at::Tensor result;
    for (std::int64_t i = 0; i < box.local_shape[0]; ++i) {
      const ExpertPlan& expert = layer_.experts.at(static_cast<std::size_t>(box.offset[0] + i));
      const at::Tensor values = name == "moe.experts.down"
                                    ? mean_of(expert, &LayerTensors::expert_down)
                                    : at::cat({mean_of(expert, &LayerTensors::expert_gate),
                                               mean_of(expert, &LayerTensors::expert_up)});
      if (!result.defined()) {
        result = at::empty(box.local_shape, values.options());
      }
      result[i].copy_(values);
    }
    return result.defined() ? result : at::empty(box.local_shape);
  }

  at::Tensor router_row(const ExpertPart& part) const {
    return read("moe.router.weight", {{part.expert}, plan_.hidden});
  }
  // Rows [F, D] and columns [D, F] of a part.
  at::Tensor expert_gate(const ExpertPart& part) const { return expert_rows(part, 0); }
  at::Tensor expert_up(const ExpertPart& part) const { return expert_rows(part, plan_.source.expert_ffn); }
  at::Tensor expert_rows(const ExpertPart& part, std::int64_t first) const {
    Indices rows = part.channels;
    for (std::int64_t& row : rows) {
      row += first;
    }
    return read("moe.experts.gate_up", {{part.expert}, rows, plan_.hidden})[0];
  }
  at::Tensor expert_down(const ExpertPart& part) const {
    return read("moe.experts.down", {{part.expert}, plan_.hidden, part.channels})[0];
  }

  at::Tensor mean_of(const ExpertPlan& expert,
                     at::Tensor (LayerTensors::*read_part)(const ExpertPart&) const) const {
    const at::Tensor first = (this->*read_part)(expert.parts.front());
    if (expert.parts.size() == 1) {
      return first;
    }
    at::Tensor sum = first.to(at::kDouble) * expert.parts.front().weight;
    for (std::size_t i = 1; i < expert.parts.size(); ++i) {
      sum += (this->*read_part)(expert.parts[i]).to(at::kDouble) * expert.parts[i].weight;
    }
    return sum.to(first.scalar_type());
  }

  at::Tensor dense_gate_up(const std::string& name, const Indices& channels, const ShardSpec& box) const {
    return read(name, {in_box({0, 1}, box, 0), in_box(channels, box, 1), in_box(plan_.hidden, box, 2)});
  }
  at::Tensor dense_down(const std::string& name, const Indices& channels, const ShardSpec& box) const {
    return read(name, {in_box(plan_.hidden, box, 0), in_box(channels, box, 1)});
  }

  at::Tensor make_dense(const std::string& name, const ShardSpec& box) const {
    const bool is_down = name == "ffn.down.weight";
    if (!layer_.channels.empty()) {
      return is_down ? dense_down(name, layer_.channels, box) : dense_gate_up(name, layer_.channels, box);
    }
    ATHANOR_CHECK(is_whole(box, 0) && (is_down || is_whole(box, 2)), "a dense layer is split by channels");
    const std::int64_t begin = box.offset[1];
    const std::int64_t end = begin + box.local_shape[1];
    std::vector<at::Tensor> pieces;
    std::int64_t first = 0;
    // Channels [from, to) of what starts at `first` of the dense layer's channels.
    const auto visit = [&](std::int64_t width,
                           const std::function<at::Tensor(std::int64_t, std::int64_t)>& cut) {
      const std::int64_t from = std::max<std::int64_t>(begin - first, 0);
      const std::int64_t to = std::min(end - first, width);
      if (from < to) {
        pieces.push_back(cut(from, to - from));
      }
      first += width;
    };
    visit(static_cast<std::int64_t>(layer_.shared.size()), [&](std::int64_t from, std::int64_t count) {
      const Indices channels = part_of(layer_.shared, from, count);
      return is_down ? read("moe.shared.down.weight", {plan_.hidden, channels})
                     : read("moe.shared.gate_up.weight", {{0, 1}, channels, plan_.hidden});
    });
    for (const ExpertPlan& expert : layer_.experts) {
      visit(static_cast<std::int64_t>(expert.parts.front().channels.size()),
            [&](std::int64_t from, std::int64_t count) { return dense_part(expert, from, count, is_down); });
    }
    return pieces.empty() ? at::empty(box.local_shape) : at::cat(pieces, 1);
  }

  // Channels of an expert as a piece of a dense layer: [2, F, D] or [D, F].
  at::Tensor dense_part(const ExpertPlan& expert, std::int64_t from, std::int64_t count, bool is_down) const {
    ExpertPlan piece = expert;
    for (ExpertPart& part : piece.parts) {
      part.channels = part_of(part.channels, from, count);
    }
    if (is_down) {
      return scaled(mean_of(piece, &LayerTensors::expert_down), expert.gate);
    }
    return at::stack({mean_of(piece, &LayerTensors::expert_gate), mean_of(piece, &LayerTensors::expert_up)});
  }

  const StudentPlan& plan_;
  const LayerPlan& layer_;
  const WeightSource& source_;
};

// "layers.12.attention.q.weight" -> 12 and "attention.q.weight"; -1 for a tensor of no layer.
std::pair<std::int64_t, std::string> split_name(const std::string& name) {
  const std::string prefix = "layers.";
  if (!name.starts_with(prefix)) {
    return {-1, name};
  }
  std::int64_t layer = -1;
  const char* begin = name.data() + prefix.size();
  const auto [end, error] = std::from_chars(begin, name.data() + name.size(), layer);
  ATHANOR_CHECK(error == std::errc() && *end == '.' && layer >= 0, "{} is no tensor of a layer", name);
  return {layer, std::string(end + 1)};
}

}  // namespace

at::Tensor make_student_tensor(const StudentPlan& plan, const std::string& name, const ShardSpec& box,
                               const WeightSource& source) {
  const auto [layer, suffix] = split_name(name);
  ATHANOR_CHECK(tensor_shape(plan.student, suffix) == box.global_shape,
                "{} is not of the shape that the student was described with", name);
  if (layer >= 0) {
    return LayerTensors(plan, layer, source).make(suffix, box);
  }
  if (suffix == "final_norm.weight") {
    return scaled(gather(source, name, {plan.source.hidden}, {in_box(plan.hidden, box, 0)}), plan.norm_scale);
  }
  const std::string from = plan.source.tie_embeddings ? "embedding.weight" : name;
  return gather(source, from, tensor_shape(plan.source, suffix),
                {in_box(student_init::all_of(box.global_shape[0]), box, 0), in_box(plan.hidden, box, 1)});
}

}  // namespace athanor::distill
