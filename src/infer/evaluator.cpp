#include "infer/evaluator.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "infer/token_batch.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::infer {
namespace {

DomainLoss domain_loss(const std::string& domain, double loss_sum, std::int64_t tokens) {
  DomainLoss out;
  out.domain = domain;
  out.tokens = tokens;
  if (tokens > 0) {
    out.loss = loss_sum / static_cast<double>(tokens);
    out.perplexity = std::exp(out.loss);
  }
  return out;
}

}  // namespace

struct Evaluator::Sums {
  double loss = 0.0;
  std::int64_t tokens = 0;
  bool is_complete = true;
};

Evaluator::Evaluator(const model::Transformer& model, const parallel::ProcessGrid& grid,
                     const EvaluatorOptions& options)
    : model_(&model), grid_(&grid), options_(options) {
  if (options_.rows_per_replica < 1 || options_.max_sequences < 0) {
    throw base::ConfigError(
        "evaluation in passes of {} sequences, at most {} (both are counts) give positive numbers",
        options_.rows_per_replica, options_.max_sequences);
  }
}

Evaluator::Sums Evaluator::sum_domain(const data::Dataset& dataset, std::int64_t domain,
                                      const moe::BalanceState* balance) const {
  const auto& replicas = grid_->comm(parallel::Axis::data);
  const int tp = grid_->size(parallel::Axis::tensor);
  std::int64_t sequences = dataset.num_samples(domain);
  if (options_.max_sequences > 0) {
    sequences = std::min(sequences, options_.max_sequences);
  }
  model::ForwardContext context;
  context.training = false;
  context.balance = balance;
  Sums sums;
  const std::int64_t rows_per_pass = options_.rows_per_replica * replicas.size();
  for (std::int64_t first = 0; first < sequences; first += rows_per_pass) {
    if (options_.goes_on && !options_.goes_on()) {
      sums.is_complete = false;
      return sums;
    }
    const std::int64_t mine = std::min(first + replicas.rank() * options_.rows_per_replica, sequences);
    const std::int64_t rows = std::min(options_.rows_per_replica, sequences - mine);
    const data::Batch batch = dataset.read_in_order(domain, mine, rows);
    const nn::TokenBatch tokens = make_token_batch(batch, tp);
    const at::Tensor x_BsD = model_->embed(tokens, context);
    const at::Tensor h_BsD = model_->blocks(x_BsD, tokens, context).h_BsD;
    const nn::CrossEntropy loss = model_->head_loss(h_BsD, tokens);
    sums.loss += loss.per_token.to(at::kDouble).sum().item<double>();
    sums.tokens += batch.valid_labels();
  }
  sums.loss = parallel::all_reduce_sum(sums.loss, replicas);
  sums.tokens = parallel::all_reduce_sum(sums.tokens, replicas);
  return sums;
}

EvaluationResult Evaluator::evaluate(const data::Dataset& dataset, const moe::BalanceState* balance) const {
  at::NoGradGuard no_grad;
  EvaluationResult result;
  Sums total;
  for (std::size_t domain = 0; domain < dataset.domain_names().size(); ++domain) {
    const Sums sums = sum_domain(dataset, static_cast<std::int64_t>(domain), balance);
    if (!sums.is_complete) {
      return {{}, {}, false};
    }
    result.domains.push_back(domain_loss(dataset.domain_names()[domain], sums.loss, sums.tokens));
    total.loss += sums.loss;
    total.tokens += sums.tokens;
  }
  result.total = domain_loss("", total.loss, total.tokens);
  return result;
}

}  // namespace athanor::infer
