#include <algorithm>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "distill/detail/weight_sink.hpp"
#include "distill/distill_loss.hpp"
#include "parallel/autograd/functions.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// dlogits are kept times this power of two, so that small probabilities of fp16 do not vanish before the
/// loss scale is known (in backward).
double gradient_scale(at::ScalarType dtype) {
  return dtype == at::kHalf ? 1024.0 : 1.0;
}

/// Losses and gradients of one micro-batch, filled chunk by chunk of rows.
struct ChunkedLoss {
  const at::Tensor& h_ND;
  const at::Tensor& weight_vD;
  std::int64_t first_id;
  const TokenTerms& terms;
  const TeacherSignal& signal;
  const parallel::Communicator& tp;
  const DistillOptions& options;
  bool wants_h = false;
  bool wants_weight = false;
  TokenLosses tokens{};
  at::Tensor dh_ND{};       ///< of this rank's vocabulary slice, times gradient_scale
  at::Tensor dweight_vD{};  ///< accumulation type, times gradient_scale

  void run();
  at::Tensor objective() const;

 private:
  void chunk_gradients(const at::Tensor& dlogits, std::int64_t first);
};

void ChunkedLoss::chunk_gradients(const at::Tensor& dlogits, std::int64_t first) {
  if (wants_h) {
    at::Tensor dh = dh_ND.narrow(0, first, dlogits.size(0));
    at::mm_out(dh, dlogits, weight_vD);
  }
  if (wants_weight) {
    const at::Tensor h = h_ND.narrow(0, first, dlogits.size(0));
    if (dweight_vD.scalar_type() == h.scalar_type()) {
      dweight_vD.addmm_(dlogits.t(), h);
    } else {
      dweight_vD.add_(at::mm(dlogits.t(), h));
    }
  }
}

void ChunkedLoss::run() {
  const std::int64_t num_tokens = h_ND.size(0);
  const at::TensorOptions numbers =
      h_ND.options().dtype(parallel::accumulation_type(h_ND.scalar_type())).requires_grad(false);
  tokens = {at::zeros({num_tokens}, numbers), at::zeros({num_tokens}, numbers)};
  if (wants_h) {
    dh_ND = at::empty(h_ND.sizes(), h_ND.options());
  }
  if (wants_weight) {
    dweight_vD = at::zeros(weight_vD.sizes(), numbers);
  }
  ChunkOptions chunk_options;
  chunk_options.first_id = first_id;
  chunk_options.wants_gradient = wants_h || wants_weight;
  chunk_options.gradient_scale = gradient_scale(h_ND.scalar_type());
  const at::Tensor buffer =
      at::empty({std::min(options.chunk_tokens, num_tokens), weight_vD.size(0)}, h_ND.options());
  for (std::int64_t first = 0; first < num_tokens; first += options.chunk_tokens) {
    const std::int64_t rows = std::min(options.chunk_tokens, num_tokens - first);
    at::Tensor logits = buffer.narrow(0, 0, rows);
    at::mm_out(logits, h_ND.narrow(0, first, rows), weight_vD.t());
    const TeacherSignal chunk_signal =
        signal.kind() == PayloadKind::none ? signal : signal.narrow(first, rows);
    const TokenLosses chunk =
        distill_chunk(logits, terms.narrow(first, rows), chunk_signal, options.kd, tp, chunk_options);
    tokens.ce_N.narrow(0, first, rows).copy_(chunk.ce_N);
    tokens.kd_N.narrow(0, first, rows).copy_(chunk.kd_N);
    chunk_gradients(logits, first);
  }
}

at::Tensor ChunkedLoss::objective() const {
  at::Tensor sum = at::zeros({}, at::kDouble);
  if (terms.ce_weight_N.defined()) {
    sum = sum + (tokens.ce_N.to(at::kDouble) * terms.ce_weight_N.to(at::kDouble)).sum();
  }
  if (terms.kd_weight_N.defined()) {
    sum = sum + (tokens.kd_N.to(at::kDouble) * terms.kd_weight_N.to(at::kDouble)).sum();
  }
  return sum.to(tokens.ce_N.scalar_type());
}

struct LinearDistillLoss : Function<LinearDistillLoss> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& h_ND, const at::Tensor& weight_vD,
                               std::int64_t first_id, const TokenTerms& terms, const TeacherSignal& signal,
                               const parallel::Communicator& tp, const DistillOptions& options,
                               bool wants_gradients, parallel::GradAccumulator* sink) {
    ChunkedLoss loss{h_ND, weight_vD, first_id, terms, signal, tp, options};
    loss.wants_h = wants_gradients && h_ND.requires_grad();
    loss.wants_weight = wants_gradients && weight_vD.requires_grad();
    loss.run();
    ctx->saved_data["dh"] = loss.dh_ND;
    ctx->saved_data["dweight"] = loss.dweight_vD;
    ctx->saved_data["type"] = static_cast<std::int64_t>(weight_vD.scalar_type());
    detail::save_sink(ctx, sink);
    ctx->mark_non_differentiable({loss.tokens.ce_N, loss.tokens.kd_N});
    return {loss.objective(), loss.tokens.ce_N, loss.tokens.kd_N};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list result(9);
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
    ATHANOR_CHECK(ctx->saved_data.count("dh") == 1, "the gradients of a distillation loss are used up");
    const at::Tensor dh_ND = ctx->saved_data["dh"].toTensor();
    at::Tensor dweight = ctx->saved_data["dweight"].toTensor();
    ctx->saved_data.erase("dh");  // a second backward pass would scale the same gradients twice
    ctx->saved_data.erase("dweight");
    const double seed = grads[0].item<double>() / gradient_scale(type);
    if (dh_ND.defined()) {
      result[0] = seed == 1.0 ? dh_ND : dh_ND * seed;
    }
    if (dweight.defined()) {
      result[1] = detail::deliver_weight_gradient(ctx, seed == 1.0 ? dweight : dweight.mul_(seed), type);
    }
    return result;
  }
};

}  // namespace

HeadLoss distill_head_loss(const at::Tensor& h_BsD, const nn::Weight& weight_vD, std::int64_t first_id,
                           const TokenTerms& terms, const TeacherSignal& signal,
                           const parallel::Communicator& tp, const DistillOptions& options) {
  validate(options.kd, signal.kind());
  const at::Tensor h_BSD = parallel::autograd::all_gather_dim(h_BsD, 1, tp, parallel::Traffic::other);
  const at::Tensor h_ND = h_BSD.reshape({h_BSD.size(0) * h_BSD.size(1), h_BSD.size(2)});
  ATHANOR_CHECK(options.chunk_tokens > 0 && terms.labels_N.numel() == h_ND.size(0),
                "a loss of {} rows was given {} labels", h_ND.size(0), terms.labels_N.numel());
  const auto out = LinearDistillLoss::apply(h_ND, weight_vD.tensor, first_id, terms, signal, tp, options,
                                            at::GradMode::is_enabled(), weight_vD.sink);
  return {out[0], {out[1], out[2]}};
}

}  // namespace athanor::distill
