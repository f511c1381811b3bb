#include "nn/vocab_parallel.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "kernels/grouped_gemm.hpp"
#include "kernels/tensor_kernels.hpp"
#include "nn/detail/function_context.hpp"
#include "parallel/autograd/functions.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// dlogits are kept times this power of two, so that small probabilities of fp16 do not vanish before the
/// loss scale is known (in backward).
double gradient_scale(at::ScalarType dtype) {
  return dtype == at::kHalf ? 1024.0 : 1.0;
}

/// Loss and gradients of one micro-batch, filled chunk by chunk of rows.
struct ChunkedLoss {
  const at::Tensor& h_ND;
  const at::Tensor& weight_vD;
  const at::Tensor& local_labels_N;  ///< index into this rank's slice; outside [0, v) elsewhere
  const at::Tensor& ignored_N;       ///< bool
  const parallel::Communicator& tp;
  bool wants_h = false;
  bool wants_weight = false;
  at::Tensor per_token_N{};  ///< accumulation type
  at::Tensor dh_ND{};        ///< of this rank's vocabulary slice, times gradient_scale
  at::Tensor dweight_vD{};   ///< accumulation type, times gradient_scale

  void run(const CrossEntropyOptions& options);

 private:
  at::Tensor chunk_statistics(const at::Tensor& logits, std::int64_t first) const;
  void chunk_loss(const at::Tensor& logits, std::int64_t first);
  void chunk_gradients(const at::Tensor& dlogits, std::int64_t first);
};

/// This rank's statistics [rows, 3] of a chunk (kernels::SoftmaxStatistics).
at::Tensor ChunkedLoss::chunk_statistics(const at::Tensor& logits, std::int64_t first) const {
  const at::Tensor statistics = at::empty({logits.size(0), 3}, per_token_N.options());
  kernels::kernels_of(logits).softmax_statistics(logits, local_labels_N.narrow(0, first, logits.size(0)),
                                                 statistics);
  return statistics;
}

/// Combines the slices' statistics in rank order and turns logits into dlogits where a gradient is wanted.
void ChunkedLoss::chunk_loss(const at::Tensor& logits, std::int64_t first) {
  const std::int64_t rows = logits.size(0);
  const at::Tensor all = parallel::all_gather(chunk_statistics(logits, first).unsqueeze(0), tp,
                                              parallel::Traffic::other);  // [tp, rows, 3]
  const kernels::SoftmaxRows whole{at::empty({rows}, all.options()), at::empty({rows}, all.options())};
  const kernels::TensorKernels& kernels = kernels::kernels_of(logits);
  kernels.join_softmax_statistics(all, ignored_N.narrow(0, first, rows), whole,
                                  per_token_N.narrow(0, first, rows));
  if (wants_h || wants_weight) {
    kernels.cross_entropy_backward(logits, local_labels_N.narrow(0, first, rows), whole,
                                   gradient_scale(logits.scalar_type()));
  }
}

void ChunkedLoss::chunk_gradients(const at::Tensor& dlogits, std::int64_t first) {
  if (wants_h) {
    kernels::matmul_into(dlogits, weight_vD, kernels::GemmMode::overwrite,
                         dh_ND.narrow(0, first, dlogits.size(0)));
  }
  if (wants_weight) {
    kernels::matmul_into(dlogits.t(), h_ND.narrow(0, first, dlogits.size(0)),
                         first == 0 ? kernels::GemmMode::overwrite : kernels::GemmMode::add, dweight_vD);
  }
}

void ChunkedLoss::run(const CrossEntropyOptions& options) {
  const std::int64_t chunk_tokens = options.chunk_tokens;
  const std::int64_t tokens = h_ND.size(0);
  const at::TensorOptions accumulation =
      h_ND.options().dtype(parallel::accumulation_type(h_ND.scalar_type())).requires_grad(false);
  per_token_N = at::empty({tokens}, accumulation);
  if (wants_h) {
    dh_ND = at::empty(h_ND.sizes(), h_ND.options());
  }
  if (wants_weight) {
    // The first chunk's product overwrites it.
    dweight_vD =
        tokens > 0 ? at::empty(weight_vD.sizes(), accumulation) : at::zeros(weight_vD.sizes(), accumulation);
  }
  const at::Tensor buffer = at::empty({std::min(chunk_tokens, tokens), weight_vD.size(0)}, h_ND.options());
  for (std::int64_t first = 0; first < tokens; first += chunk_tokens) {
    const std::int64_t rows = std::min(chunk_tokens, tokens - first);
    at::Tensor logits = buffer.narrow(0, 0, rows);
    kernels::matmul_into(h_ND.narrow(0, first, rows), weight_vD.t(), kernels::GemmMode::overwrite, logits);
    if (options.observe_logits) {
      options.observe_logits(logits, first);
    }
    chunk_loss(logits, first);
    chunk_gradients(logits, first);
  }
}

struct LinearCrossEntropy : Function<LinearCrossEntropy> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& h_ND, const at::Tensor& weight_vD,
                               const at::Tensor& local_labels_N, const at::Tensor& ignored_N,
                               const parallel::Communicator& tp, const CrossEntropyOptions& options,
                               bool wants_gradients, parallel::GradAccumulator* sink) {
    ChunkedLoss loss{h_ND, weight_vD, local_labels_N, ignored_N, tp};
    loss.wants_h = wants_gradients && h_ND.requires_grad();
    loss.wants_weight = wants_gradients && weight_vD.requires_grad();
    loss.run(options);
    ctx->saved_data["dh"] = loss.dh_ND;
    ctx->saved_data["dweight"] = loss.dweight_vD;
    ctx->save_for_backward({weight_vD});
    detail::save_sink(ctx, sink);
    const at::Tensor sum = loss.per_token_N.sum(at::kDouble).to(loss.per_token_N.scalar_type());
    ctx->mark_non_differentiable({loss.per_token_N});
    return {sum, loss.per_token_N};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const base::ScopedSpan span(base::SpanKind::compute, "head backward");
    variable_list result(8);
    const at::Tensor weight = ctx->get_saved_variables()[0];
    const at::Tensor dh_ND = ctx->saved_data["dh"].toTensor();
    at::Tensor dweight = ctx->saved_data["dweight"].toTensor();
    ctx->saved_data.erase("dh");  // a second backward pass would scale the same gradients twice
    ctx->saved_data.erase("dweight");
    const double seed = grads[0].item<double>() / gradient_scale(weight.scalar_type());
    if (dh_ND.defined()) {
      result[0] = seed == 1.0 ? dh_ND : dh_ND * seed;
    }
    if (dweight.defined()) {
      result[1] = detail::deliver_weight_gradient(detail::saved_sink(ctx),
                                                  seed == 1.0 ? dweight : dweight.mul_(seed), weight);
    }
    return result;
  }
};

}  // namespace

CrossEntropy vocab_parallel_cross_entropy(const at::Tensor& h_BsD, const Weight& weight_vD,
                                          const at::Tensor& labels_BS, std::int64_t vocab_first,
                                          const parallel::Communicator& tp,
                                          const CrossEntropyOptions& options) {
  const at::Tensor h_BSD = parallel::autograd::all_gather_dim(h_BsD, 1, tp, parallel::Traffic::other);
  ATHANOR_CHECK(options.chunk_tokens > 0 && labels_BS.numel() == h_BSD.size(0) * h_BSD.size(1),
                "cross-entropy of {} rows was given {} labels", h_BSD.size(0) * h_BSD.size(1),
                labels_BS.numel());
  const at::Tensor h_ND = h_BSD.reshape({h_BSD.size(0) * h_BSD.size(1), h_BSD.size(2)});
  const at::Tensor labels_N = labels_BS.reshape({h_ND.size(0)});
  const at::Tensor ignored = labels_N.eq(ignored_label);
  const at::Tensor local_labels = at::where(ignored, labels_N, labels_N - vocab_first);
  const at::Tensor ignored_N = ignored.to(h_ND.device()).contiguous();
  const at::Tensor local_labels_N = local_labels.to(h_ND.device()).contiguous();
  const auto out = LinearCrossEntropy::apply(h_ND, weight_vD.tensor, local_labels_N, ignored_N, tp, options,
                                             at::GradMode::is_enabled(), weight_vD.sink);
  return {out[0], out[1]};
}

at::Tensor gather_logits(const at::Tensor& h_ND, const at::Tensor& weight_vD, std::int64_t vocab,
                         const parallel::Communicator& tp) {
  const at::NoGradGuard no_grad;
  if (tp.size() == 1) {
    return at::mm(h_ND, weight_vD.t());
  }
  std::vector<std::int64_t> rows;
  for (int rank = 0; rank < tp.size(); ++rank) {
    rows.push_back(parallel::block_of(vocab, tp.size(), rank).count);
  }
  // Gathered with the vocabulary first, so that each rank's part is one run of rows.
  const at::Tensor logits_vN = at::mm(weight_vD, h_ND.t());
  return parallel::all_gather_v(logits_vN, rows, tp, parallel::Traffic::other).t().contiguous();
}

}  // namespace athanor::nn
