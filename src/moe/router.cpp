#include "moe/router.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "base/error.hpp"
#include "kernels/grouped_gemm.hpp"
#include "moe/capacity.hpp"
#include "moe/detail/attach_backward.hpp"
#include "moe/detail/router_kernels.hpp"
#include "nn/weight.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::moe {
namespace {

/// What one forward pass computes and what its backward needs. A is the accumulation type. Choices are made
/// on the CPU, where the exchange needs their counts: of a pass on a GPU only x and the products with the
/// weight are there.
struct Pass {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  nn::SequenceSlice slice;
  detail::GateKind gate_kind = detail::GateKind::normalised;
  bool sigmoid = false;
  double z_coefficient = 0.0;

  at::Tensor x_TD;  ///< as given; not kept after forward
  nn::StoredActivation kept_x;
  at::ScalarType x_type = at::kFloat;
  nn::Weight weight_ED;
  at::Tensor logits_TE;      ///< x W^T; after forward only kept when the z-loss of sigmoid scores needs it
  at::Tensor y_TE;           ///< log s up to a constant of the row; not kept after forward
  at::Tensor scores_TE;      ///< s; after forward only kept for sigmoid
  at::Tensor normalised_TE;  ///< s'
  at::Tensor lse_T;          ///< logsumexp of the logits
  at::Tensor ids_TK;
  at::Tensor gates_TK;  ///< before drops
  at::Tensor kept_TK;
  at::Tensor coefficients;  ///< BalanceTerms::coefficients in A

  at::Tensor score_sums_BE;  ///< f64; not kept after forward
  double entropy_sum = 0.0;
  double z_sum = 0.0;
};

at::ScalarType acc_type(const at::Tensor& tensor) {
  return parallel::accumulation_type(tensor.scalar_type());
}

/// Calls function(A()) for A = float or double by the tensor's type.
template <typename Function>
void for_type_of(const at::Tensor& tensor, const Function& function) {
  if (tensor.scalar_type() == at::kDouble) {
    function(double());
  } else {
    ATHANOR_CHECK(tensor.scalar_type() == at::kFloat, "the router computes in f32 or f64, not in {}",
                  c10::toString(tensor.scalar_type()));
    function(float());
  }
}

void compute_scores(Pass& pass) {
  const at::ScalarType type = acc_type(pass.x_TD);
  pass.logits_TE = kernels::matmul(pass.x_TD.to(type), pass.weight_ED.tensor.to(type).t()).cpu();
  pass.y_TE = pass.sigmoid ? at::log_sigmoid(pass.logits_TE) : pass.logits_TE;
  pass.normalised_TE = at::softmax(pass.y_TE, -1);
  pass.scores_TE = pass.sigmoid ? at::sigmoid(pass.logits_TE) : pass.normalised_TE;
}

/// Choice j of token t = sample * S + position is expert (t K + j) mod E.
at::Tensor uniform_ids(const Pass& pass, const MoeOptions& options, const nn::TokenBatch& batch) {
  const at::Tensor position =
      at::arange(pass.slice.first, pass.slice.first + pass.slice.real_count, at::kLong);
  const at::Tensor token =
      (batch.sample_ids_B.unsqueeze(1) * batch.real_seq + position.unsqueeze(0)).reshape({-1, 1});
  return (token * options.top_k + at::arange(options.top_k, at::kLong))
      .remainder(options.num_experts)
      .contiguous();
}

at::Tensor choose(const Pass& pass, const MoeOptions& options, const MoeContext& context) {
  if (context.forced_ids_TK != nullptr) {
    at::Tensor ids = context.forced_ids_TK->to(at::kLong).contiguous();
    ATHANOR_CHECK(ids.dim() == 2 && ids.size(0) == pass.tokens && ids.size(1) == options.top_k,
                  "forced routing needs [{}, {}] expert ids", pass.tokens, options.top_k);
    ATHANOR_CHECK(ids.numel() == 0 || (ids.min().item<std::int64_t>() >= 0 &&
                                       ids.max().item<std::int64_t>() < options.num_experts),
                  "forced routing names an expert outside 0 .. {}", options.num_experts - 1);
    return ids;
  }
  if (options.force_uniform) {
    return uniform_ids(pass, options, *context.batch);
  }
  at::Tensor ids = at::empty({pass.tokens, options.top_k}, at::kLong);
  const at::Tensor bias =
      context.bias_E.defined() ? context.bias_E.to(pass.scores_TE.scalar_type()).contiguous() : at::Tensor();
  const detail::ChoiceShape shape{options.num_experts, options.top_k, options.groups, options.group_top_k};
  for_type_of(pass.scores_TE, [&]<typename A>(A) {
    detail::choose_experts(pass.scores_TE.const_data_ptr<A>(),
                           bias.defined() ? bias.const_data_ptr<A>() : nullptr, pass.tokens, shape,
                           ids.mutable_data_ptr<std::int64_t>());
  });
  return ids;
}

/// int64 [B, E]: this rank's choices of each sequence, before drops.
at::Tensor count_choices(const Pass& pass, const MoeOptions& options) {
  at::Tensor counts_BE = at::zeros({pass.sequences, options.num_experts}, at::kLong);
  const auto* ids = pass.ids_TK.const_data_ptr<std::int64_t>();
  auto* counts = counts_BE.mutable_data_ptr<std::int64_t>();
  for (std::int64_t t = 0; t < pass.tokens; ++t) {
    std::int64_t* row = counts + t / pass.slice.real_count * options.num_experts;
    for (std::int64_t k = 0; k < options.top_k; ++k) {
      ++row[ids[t * options.top_k + k]];
    }
  }
  return counts_BE;
}

void compute_gates(Pass& pass, const MoeOptions& options) {
  if (pass.gate_kind != detail::GateKind::normalised) {
    pass.gates_TK = pass.scores_TE.gather(1, pass.ids_TK);
    return;
  }
  pass.gates_TK = at::empty({pass.tokens, options.top_k}, pass.y_TE.options());
  for_type_of(pass.y_TE, [&]<typename A>(A) {
    detail::normalised_gates(pass.y_TE.const_data_ptr<A>(), pass.ids_TK.const_data_ptr<std::int64_t>(),
                             pass.tokens, options.num_experts, options.top_k,
                             pass.gates_TK.mutable_data_ptr<A>());
  });
}

void compute_sums(Pass& pass, const MoeOptions& options) {
  pass.score_sums_BE = at::zeros({pass.sequences, options.num_experts}, at::kDouble);
  pass.lse_T = at::empty({pass.tokens}, pass.y_TE.options());
  for_type_of(pass.y_TE, [&]<typename A>(A) {
    const detail::RouterSums sums =
        detail::router_sums(pass.y_TE.const_data_ptr<A>(), pass.normalised_TE.const_data_ptr<A>(),
                            pass.tokens, pass.slice.real_count, options.num_experts,
                            pass.score_sums_BE.mutable_data_ptr<double>(), pass.lse_T.mutable_data_ptr<A>());
    pass.entropy_sum = sums.entropy;
    pass.z_sum = sums.z;
  });
  if (pass.sigmoid) {  // z is of the logits, not of log s
    pass.lse_T = at::logsumexp(pass.logits_TE, -1);
    pass.z_sum = pass.lse_T.to(at::kDouble).square().sum().item<double>();
  }
}

/// Which choices of this rank's tokens the experts have room for, decided on the whole sequences.
at::Tensor decide_drops(const Pass& pass, const MoeOptions& options, const nn::TokenBatch& batch,
                        const parallel::Communicator& tp) {
  const std::int64_t K = options.top_k;
  const auto in_whole_sequences = [&](const at::Tensor& values_TK, double padding) {
    at::Tensor padded = at::full({pass.sequences, pass.slice.count, K}, padding, values_TK.options());
    padded.narrow(1, 0, pass.slice.real_count)
        .copy_(values_TK.view({pass.sequences, pass.slice.real_count, K}));
    return parallel::all_gather(padded, tp, parallel::Traffic::other)
        .view({tp.size(), pass.sequences, pass.slice.count, K})
        .transpose(0, 1)
        .reshape({pass.sequences, tp.size() * pass.slice.count, K});
  };
  const at::Tensor ids_BSK = in_whole_sequences(pass.ids_TK, -1.0);
  const at::Tensor scores_BSK = in_whole_sequences(pass.scores_TE.gather(1, pass.ids_TK), 0.0);
  return keep_within_capacity(ids_BSK, scores_BSK, options.num_experts,
                              sequence_capacity(options, batch.real_seq), options.drop)
      .narrow(1, pass.slice.first, pass.slice.real_count)
      .reshape({pass.tokens, K});
}

/// Adds this micro-batch to the statistics of the step.
void report(const Pass& pass, const at::Tensor& counts_BE, const BalanceTerms& terms,
            const MoeOptions& options, const nn::TokenBatch& batch, bool first_tp_rank,
            LayerStatistics& statistics) {
  statistics.counts_E.add_(counts_BE.sum(0));
  statistics.score_sum_E.add_(pass.score_sums_BE.sum(0));
  statistics.z_sum += pass.z_sum;
  statistics.entropy_sum += pass.entropy_sum;
  if (pass.kept_TK.defined()) {
    statistics.dropped += pass.kept_TK.numel() - pass.kept_TK.sum().item<std::int64_t>();
  }
  if (terms.sequence_counts_BE.defined()) {
    const auto seq = static_cast<double>(batch.real_seq);
    const double scale =
        static_cast<double>(options.num_experts) / (static_cast<double>(options.top_k) * seq * seq);
    statistics.sequence_sum += scale * (terms.sequence_counts_BE * pass.score_sums_BE).sum().item<double>();
    statistics.num_sequences += first_tp_rank ? pass.sequences : 0;
  }
}

at::Tensor aux_value(const Pass& pass, const BalanceTerms& terms) {
  double aux = terms.z_coefficient * pass.z_sum;
  if (terms.coefficients.defined()) {
    aux += (terms.coefficients * pass.score_sums_BE).sum().item<double>();
  }
  return at::scalar_tensor(aux, pass.normalised_TE.options());
}

/// d(logits) from the gradients of gates and aux, either of which may be undefined.
at::Tensor logits_gradient(const Pass& pass, const at::Tensor& dgates_TK, const at::Tensor& daux) {
  at::Tensor dy = at::zeros_like(pass.normalised_TE);
  const double seed = daux.defined() ? daux.item<double>() : 0.0;
  const std::int64_t experts = dy.size(1);
  for_type_of(dy, [&]<typename A>(A) {
    const A* normalised = pass.normalised_TE.const_data_ptr<A>();
    if (dgates_TK.defined()) {
      const at::Tensor masked = (pass.kept_TK.defined() ? dgates_TK * pass.kept_TK : dgates_TK).contiguous();
      detail::add_gate_gradient(pass.gate_kind, pass.gates_TK.const_data_ptr<A>(), masked.const_data_ptr<A>(),
                                pass.ids_TK.const_data_ptr<std::int64_t>(), normalised, pass.tokens, experts,
                                pass.ids_TK.size(1), dy.mutable_data_ptr<A>());
    }
    if (seed != 0.0 && pass.coefficients.defined()) {
      detail::add_balance_gradient(normalised, pass.coefficients.const_data_ptr<A>(),
                                   pass.coefficients.size(0), pass.tokens, pass.slice.real_count, experts,
                                   static_cast<A>(seed), dy.mutable_data_ptr<A>());
    }
  });
  if (pass.sigmoid) {
    dy.addcmul_(dy, pass.scores_TE, -1.0);  // d log sigmoid(x) / dx = 1 - sigmoid(x)
  }
  if (seed != 0.0 && pass.z_coefficient != 0.0) {
    const at::Tensor softmax = pass.sigmoid ? at::softmax(pass.logits_TE, -1) : pass.normalised_TE;
    dy.addcmul_(softmax, pass.lse_T.unsqueeze(1), 2.0 * pass.z_coefficient * seed);
  }
  return dy;
}

/// Gradients of x and of the weight (undefined when its sink took it).
detail::TensorVector backward(const Pass& pass, const at::Tensor& dgates_TK, const at::Tensor& daux) {
  const at::NoGradGuard no_grad;
  const at::Tensor dlogits = logits_gradient(pass, dgates_TK.defined() ? dgates_TK.cpu() : dgates_TK, daux)
                                 .to(pass.weight_ED.tensor.device());
  const at::ScalarType type = dlogits.scalar_type();
  const at::Tensor dx = kernels::matmul(dlogits, pass.weight_ED.tensor.to(type)).to(pass.x_type);
  if (pass.weight_ED.sink == nullptr && !pass.weight_ED.tensor.requires_grad()) {
    return {dx, at::Tensor()};  // frozen
  }
  const at::Tensor x = nn::restore_activation(pass.kept_x, type).to(type);
  if (pass.weight_ED.sink != nullptr) {
    pass.weight_ED.sink->add_matmul(dlogits.t(), x);
    return {dx, at::Tensor()};
  }
  return {dx, at::mm(dlogits.t(), x).to(pass.weight_ED.tensor.scalar_type())};
}

/// Drops what only forward needed.
void keep_for_backward(Pass& pass) {
  pass.x_TD.reset();
  pass.y_TE.reset();
  pass.score_sums_BE.reset();
  if (!pass.sigmoid) {
    pass.scores_TE.reset();
  }
  if (!pass.sigmoid || pass.z_coefficient == 0.0) {
    pass.logits_TE.reset();
  }
}

}  // namespace

TopKRouter::TopKRouter(const MoeOptions& options, std::int64_t hidden, double init_std,
                       const std::string& prefix, parallel::ParameterMap& parameters,
                       const parallel::ProcessGrid& grid)
    : options_(options), grid_(&grid), balance_(options, grid) {
  parallel::ParameterOptions parameter;
  parameter.name = prefix + "weight";
  parameter.shard = parallel::ShardSpec::whole({options.num_experts, hidden});
  parameter.init.std = init_std;
  weight_ = parameters.add(parameter);
}

Routing TopKRouter::forward(const at::Tensor& x_TD, const MoeContext& context,
                            const nn::StoredActivation& kept_x) const {
  const parallel::Communicator& tp = grid_->comm(parallel::Axis::tensor);
  const nn::TokenBatch& batch = *context.batch;
  auto pass = std::make_shared<Pass>();
  pass->tokens = x_TD.size(0);
  pass->sequences = batch.tokens_BS.size(0);
  pass->slice = nn::SequenceSlice::of(batch.tokens_BS.size(1), batch.real_seq, tp.rank(), tp.size());
  ATHANOR_CHECK(pass->tokens == pass->sequences * pass->slice.real_count,
                "{} rows for {} sequences of {} positions", pass->tokens, pass->sequences,
                pass->slice.real_count);
  pass->sigmoid = options_.score == RouterScore::sigmoid;
  pass->gate_kind = options_.normalize_top_k ? detail::GateKind::normalised
                    : pass->sigmoid          ? detail::GateKind::sigmoid
                                             : detail::GateKind::softmax;
  pass->weight_ED = nn::read_weight(weight_);
  pass->x_TD = x_TD;
  pass->kept_x = kept_x.is_defined() ? kept_x : nn::StoredActivation{x_TD, at::Tensor()};
  pass->x_type = x_TD.scalar_type();

  Routing routing;
  detail::TensorVector outputs;
  {
    const at::NoGradGuard no_grad;
    compute_scores(*pass);
    pass->ids_TK = choose(*pass, options_, context);
    compute_gates(*pass, options_);
    compute_sums(*pass, options_);
    const at::Tensor counts_BE = count_choices(*pass, options_);
    const BalanceTerms terms = balance_.terms(counts_BE, pass->tokens, context);
    if (options_.capacity_factor > 0.0) {
      pass->kept_TK = decide_drops(*pass, options_, batch, tp);
    }
    if (context.statistics != nullptr) {
      report(*pass, counts_BE, terms, options_, batch, tp.rank() == 0, *context.statistics);
    }
    pass->z_coefficient = terms.z_coefficient;
    if (terms.coefficients.defined()) {
      pass->coefficients = terms.coefficients.to(pass->normalised_TE.scalar_type()).contiguous();
    }
    const at::Tensor gates_TK =
        pass->kept_TK.defined() ? pass->gates_TK * pass->kept_TK : pass->gates_TK.alias();
    outputs.push_back(gates_TK.to(x_TD.device()));
    if (terms.any()) {
      outputs.push_back(aux_value(*pass, terms));
    }
    keep_for_backward(*pass);
  }
  routing.topk_ids_TK = pass->ids_TK;
  routing.kept_TK = pass->kept_TK;
  outputs = detail::attach_backward("route backward", {x_TD, pass->weight_ED.tensor}, outputs,
                                    [pass](const detail::TensorVector& gradients) {
                                      return backward(*pass, gradients[0],
                                                      gradients.size() > 1 ? gradients[1] : at::Tensor());
                                    });
  routing.gates_TK = outputs[0];
  routing.aux = outputs.size() > 1 ? outputs[1] : at::Tensor();
  return routing;
}

}  // namespace athanor::moe
