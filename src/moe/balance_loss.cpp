#include "moe/balance_loss.hpp"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::moe {
namespace {

std::vector<double> to_doubles(const at::Tensor& values) {
  const at::Tensor flat = values.to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

double mean_use(const MoeOptions& options) {
  return static_cast<double>(options.top_k) / static_cast<double>(options.num_experts);
}

/// Constants a_i of the kinds whose f^ is one vector for all tokens.
std::vector<double> global_constants(const std::vector<double>& frequency_E, const MoeOptions& options) {
  std::vector<double> sum(frequency_E.size(), 0.0);
  const auto add = [&sum](const std::vector<double>& constants) {
    std::transform(sum.begin(), sum.end(), constants.begin(), sum.begin(), std::plus<>());
  };
  if (options.uses(BalanceKind::squared)) {
    add(squared_constants(frequency_E, options));
  }
  if (options.uses(BalanceKind::switch_loss)) {
    add(switch_constants(frequency_E, options));
  }
  return sum;
}

}  // namespace

std::vector<double> squared_constants(const std::vector<double>& frequency_E, const MoeOptions& options) {
  std::vector<double> constants(frequency_E.size());
  std::transform(frequency_E.begin(), frequency_E.end(), constants.begin(),
                 [&](double f) { return options.balance_weight * 2.0 * (f / mean_use(options) - 1.0); });
  return constants;
}

std::vector<double> switch_constants(const std::vector<double>& frequency_E, const MoeOptions& options) {
  std::vector<double> constants(frequency_E.size());
  std::transform(frequency_E.begin(), frequency_E.end(), constants.begin(),
                 [&](double f) { return options.balance_weight * f / mean_use(options); });
  return constants;
}

BalanceLoss::BalanceLoss(const MoeOptions& options, const parallel::ProcessGrid& grid)
    : options_(options), grid_(&grid) {}

std::vector<double> BalanceLoss::frequency(const at::Tensor& counts_BE, std::int64_t tokens,
                                           const MoeContext& context) const {
  if (options_.balance_counts == BalanceCounts::batch) {
    return context.balance_frequency_E.defined() ? to_doubles(context.balance_frequency_E)
                                                 : std::vector<double>();
  }
  // Counts and tokens of this micro-step over all its ranks, in one integer all-reduce.
  at::Tensor sums = at::empty({options_.num_experts + 1}, counts_BE.options());
  sums.narrow(0, 0, options_.num_experts).copy_(counts_BE.sum(0));
  sums.narrow(0, options_.num_experts, 1).fill_(tokens);
  parallel::all_reduce_(sums, parallel::ReduceOp::sum, grid_->role(), parallel::Traffic::other);
  std::vector<double> frequency = to_doubles(sums);
  const double all_tokens = std::max(frequency.back(), 1.0);
  frequency.pop_back();
  for (double& value : frequency) {
    value /= all_tokens;
  }
  return frequency;
}

BalanceTerms BalanceLoss::terms(const at::Tensor& counts_BE, std::int64_t tokens,
                                const MoeContext& context) const {
  BalanceTerms terms;
  if (options_.uses(BalanceKind::sequence) && (context.want_aux || context.statistics != nullptr)) {
    terms.sequence_counts_BE = counts_BE.clone();
    parallel::all_reduce_(terms.sequence_counts_BE, parallel::ReduceOp::sum,
                          grid_->comm(parallel::Axis::tensor), parallel::Traffic::other);
  }
  if (!context.want_aux) {
    return terms;
  }
  ATHANOR_CHECK(context.routed_tokens > 0 && context.num_sequences > 0,
                "the balance terms need the tokens ({}) and sequences ({}) of the global batch",
                context.routed_tokens, context.num_sequences);
  terms.z_coefficient = options_.z_weight * context.valid_labels / context.routed_tokens;
  if (options_.uses(BalanceKind::squared) || options_.uses(BalanceKind::switch_loss)) {
    const std::vector<double> frequency_E = frequency(counts_BE, tokens, context);
    if (!frequency_E.empty()) {
      terms.coefficients = at::tensor(global_constants(frequency_E, options_), at::kDouble).unsqueeze(0) *
                           (context.valid_labels / context.routed_tokens);
    }
  }
  if (options_.uses(BalanceKind::sequence)) {
    // (1/sequences) sum over sequences of (E/k) sum_i f_i P_i with f and P of real_seq tokens each.
    const auto seq = static_cast<double>(context.batch->real_seq);
    const double scale = options_.balance_weight * context.valid_labels /
                         (mean_use(options_) * seq * seq * context.num_sequences);
    const at::Tensor coefficients = terms.sequence_counts_BE.to(at::kDouble) * scale;
    terms.coefficients = terms.coefficients.defined() ? terms.coefficients + coefficients : coefficients;
  }
  return terms;
}

double BalanceValues::balance(const MoeOptions& options) const {
  double sum = 0.0;
  sum += options.uses(BalanceKind::squared) ? squared : 0.0;
  sum += options.uses(BalanceKind::switch_loss) ? switch_loss : 0.0;
  sum += options.uses(BalanceKind::sequence) ? sequence : 0.0;
  return sum;
}

double BalanceValues::weighted(const MoeOptions& options) const {
  return options.balance_weight * balance(options) + options.z_weight * z;
}

BalanceValues balance_values(const LayerStatistics& statistics, std::int64_t tokens,
                             const MoeOptions& options) {
  BalanceValues values;
  if (tokens == 0) {
    return values;
  }
  const auto T = static_cast<double>(tokens);
  const auto E = static_cast<double>(options.num_experts);
  const double mu = mean_use(options);
  const std::vector<double> counts = to_doubles(statistics.counts_E);
  const std::vector<double> score_sums = to_doubles(statistics.score_sum_E);
  values.use_min = counts[0] / T / mu;
  double use_sum = 0.0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double use = counts[i] / T / mu;
    use_sum += use;
    values.squared += (use - 1.0) * (use - 1.0) / E;
    values.switch_loss += use * score_sums[i] / T;
    values.use_max = std::max(values.use_max, use);
    values.use_min = std::min(values.use_min, use);
  }
  const double use_mean = use_sum / E;
  for (const double count : counts) {
    const double use = count / T / mu;
    values.use_std += (use - use_mean) * (use - use_mean) / E;
  }
  values.use_std = std::sqrt(values.use_std);
  if (statistics.num_sequences > 0) {
    values.sequence = statistics.sequence_sum / static_cast<double>(statistics.num_sequences);
  }
  values.z = statistics.z_sum / T;
  values.entropy = statistics.entropy_sum / T;
  values.dropped_share = static_cast<double>(statistics.dropped) / (T * static_cast<double>(options.top_k));
  return values;
}

LayerStatistics make_statistics(std::int64_t num_experts) {
  LayerStatistics statistics;
  statistics.counts_E = at::zeros({num_experts}, at::kLong);
  statistics.score_sum_E = at::zeros({num_experts}, at::kDouble);
  return statistics;
}

}  // namespace athanor::moe
