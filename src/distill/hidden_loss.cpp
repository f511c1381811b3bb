#include "distill/hidden_loss.hpp"

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "distill/detail/weight_sink.hpp"

namespace athanor::distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// Loss [n] and its gradient [n, D] by s.
struct ValueAndSlope {
  at::Tensor value_n;
  at::Tensor slope_nD;
};

at::Tensor row_dot(const at::Tensor& a_nD, const at::Tensor& b_nD) {
  return (a_nD * b_nD).sum(1, true);
}

ValueAndSlope squared_error(const at::Tensor& s_nD, const at::Tensor& t_nD, const at::Tensor& divisor) {
  const at::Tensor difference = s_nD - t_nD;
  return {(row_dot(difference, difference) / divisor).squeeze(1), difference * (2.0 / divisor)};
}

/// 1 - cos, or |s/|s| - t/|t||^2.
ValueAndSlope angle(const at::Tensor& s_nD, const at::Tensor& t_nD, double eps, bool squared) {
  const at::Tensor s_norm = row_dot(s_nD, s_nD).sqrt(), s_length = s_norm.clamp_min(eps);
  const at::Tensor direction = s_nD / s_length;
  const at::Tensor target = t_nD / row_dot(t_nD, t_nD).sqrt().clamp_min(eps);
  // Below eps the length is a constant, and the direction has no component to take out.
  const at::Tensor varies = s_norm.gt(eps).to(s_nD.scalar_type());
  if (squared) {
    const at::Tensor difference = direction - target;
    const at::Tensor along = row_dot(difference, direction) * varies;
    return {row_dot(difference, difference).squeeze(1), 2.0 * (difference - along * direction) / s_length};
  }
  const at::Tensor cosine = row_dot(direction, target);
  return {1.0 - cosine.squeeze(1), (cosine * varies * direction - target) / s_length};
}

ValueAndSlope value_and_slope(const at::Tensor& s_nD, const at::Tensor& t_nD, const HiddenOptions& options) {
  switch (options.kind) {
    case HiddenLossKind::mse:
      return squared_error(s_nD, t_nD, at::full({1, 1}, static_cast<double>(s_nD.size(1)), s_nD.options()));
    case HiddenLossKind::relative:
      return squared_error(s_nD, t_nD, row_dot(t_nD, t_nD) + options.eps);
    case HiddenLossKind::cosine:
      return angle(s_nD, t_nD, options.eps, false);
    case HiddenLossKind::normalized:
      return angle(s_nD, t_nD, options.eps, true);
  }
  throw base::InternalError("unknown hidden-state loss {}", static_cast<int>(options.kind));
}

/// Loss and gradients in one pass; only rows with a weight are read.
struct HiddenStateLoss : Function<HiddenStateLoss> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& student_nD,
                               const at::Tensor& teacher_nD, const at::Tensor& weight_n,
                               const std::optional<at::Tensor>& projection_DD, const HiddenOptions& options,
                               bool wants_gradients, parallel::GradAccumulator* sink) {
    const at::ScalarType type = weight_n.scalar_type();
    const at::Tensor rows = at::nonzero(weight_n).squeeze(1);
    const at::Tensor h_nD = student_nD.index_select(0, rows);
    const at::Tensor s_nD = (projection_DD ? at::mm(h_nD, projection_DD->t()) : h_nD).to(type);
    ValueAndSlope loss = value_and_slope(s_nD, teacher_nD.index_select(0, rows).to(type), options);
    const at::Tensor row_weight = weight_n.index_select(0, rows);
    at::Tensor per_token = at::zeros_like(weight_n);
    per_token.index_copy_(0, rows, loss.value_n);
    detail::save_sink(ctx, sink);
    ctx->saved_data["student_type"] = static_cast<std::int64_t>(student_nD.scalar_type());
    if (wants_gradients) {
      at::Tensor slope = loss.slope_nD.mul_(row_weight.unsqueeze(1)).to(student_nD.scalar_type());
      if (student_nD.requires_grad()) {
        const at::Tensor dh = projection_DD ? at::mm(slope, *projection_DD) : slope;
        at::Tensor dstudent = at::zeros_like(student_nD, at::MemoryFormat::Contiguous);
        dstudent.index_copy_(0, rows, dh * options.gradient_scale);
        ctx->saved_data["dstudent"] = dstudent;
      }
      if (projection_DD && projection_DD->requires_grad()) {
        ctx->saved_data["dprojection"] = at::mm(slope.t(), h_nD).to(type);
      }
    }
    ctx->mark_non_differentiable({per_token});
    const at::Tensor objective = (loss.value_n.to(at::kDouble) * row_weight.to(at::kDouble)).sum().to(type);
    return {objective, per_token};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(7);
    const double seed = grads[0].item<double>();
    if (ctx->saved_data.count("dstudent") == 1) {
      result[0] = ctx->saved_data["dstudent"].toTensor() * seed;
    }
    if (ctx->saved_data.count("dprojection") == 1) {
      result[3] = detail::deliver_weight_gradient(
          ctx, ctx->saved_data["dprojection"].toTensor() * seed,
          static_cast<at::ScalarType>(ctx->saved_data["student_type"].toInt()));
    }
    return result;
  }
};

at::Tensor as_rows(const at::Tensor& states) {
  return states.reshape({states.numel() / std::max<std::int64_t>(states.size(-1), 1), states.size(-1)});
}

}  // namespace

HiddenLoss hidden_state_loss(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& weight_n,
                             const nn::Weight& projection, const HiddenOptions& options) {
  const at::Tensor student_nD = as_rows(student), teacher_nD = as_rows(teacher.detach());
  const at::Tensor weight =
      weight_n.reshape({-1}).to(parallel::accumulation_type(student.scalar_type())).detach();
  ATHANOR_CHECK(student_nD.size(0) == teacher_nD.size(0) && weight.numel() == student_nD.size(0),
                "{} states of the student, {} of the teacher and {} weights", student_nD.size(0),
                teacher_nD.size(0), weight.numel());
  const bool projects = projection.tensor.defined();
  const std::int64_t width = projects ? projection.tensor.size(0) : student_nD.size(1);
  ATHANOR_CHECK(width == teacher_nD.size(1) && (!projects || projection.tensor.size(1) == student_nD.size(1)),
                "states of width {} become {}, the teacher's have {}", student_nD.size(1), width,
                teacher_nD.size(1));
  const auto out = HiddenStateLoss::apply(
      student_nD, teacher_nD, weight, projects ? std::optional<at::Tensor>(projection.tensor) : std::nullopt,
      options, at::GradMode::is_enabled(), projection.sink);
  return {out[0], out[1]};
}

HiddenTerm::HiddenTerm(const Options& options, parallel::ParameterMap& parameters) : options_(options) {
  for (const LayerPair& pair : options_.pairs) {
    if (!options_.always_project && options_.student_width == options_.teacher_width) {
      projections_.push_back(nullptr);
      continue;
    }
    parallel::ParameterOptions parameter;
    parameter.name = fmt::format("distill.projection.{}.{}.weight", pair.student_layer, pair.teacher_layer);
    parameter.shard = parallel::ShardSpec::whole({options_.teacher_width, options_.student_width});
    parameter.init.std = 1.0 / std::sqrt(static_cast<double>(options_.student_width));
    projections_.push_back(parameters.add(parameter));
  }
}

HiddenLoss HiddenTerm::loss(const std::vector<at::Tensor>& student, const std::vector<at::Tensor>& teacher,
                            const at::Tensor& weight_n, HiddenLossKind kind) const {
  ATHANOR_CHECK(!options_.pairs.empty() && student.size() == options_.pairs.size() &&
                    teacher.size() == options_.pairs.size(),
                "{} pairs of layers were given {} states of the student and {} of the teacher",
                options_.pairs.size(), student.size(), teacher.size());
  HiddenOptions options = options_.loss;
  options.kind = kind;
  HiddenLoss sum;
  for (std::size_t i = 0; i < options_.pairs.size(); ++i) {
    const nn::Weight projection =
        projections_[i] == nullptr ? nn::Weight{} : nn::read_weight(projections_[i]);
    const HiddenLoss one = hidden_state_loss(student[i], teacher[i], weight_n, projection, options);
    const double weight = options_.pairs[i].weight;
    const at::Tensor objective = one.objective * weight, per_token = one.per_token_n * weight;
    sum.objective = i == 0 ? objective : sum.objective + objective;
    sum.per_token_n = i == 0 ? per_token : sum.per_token_n + per_token;
  }
  return sum;
}

}  // namespace athanor::distill
