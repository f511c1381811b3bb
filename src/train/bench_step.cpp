#include "train/bench_step.hpp"

#include "nn/stored_activation.hpp"
#include "parallel/dtype.hpp"
#include "train/bench_support.hpp"

namespace athanor::train {
namespace {

void add_times(StepTimes& sum, const StepTimes& times, double weight) {
  sum.data_s += weight * times.data_s;
  sum.forward_s += weight * times.forward_s;
  sum.backward_s += weight * times.backward_s;
  sum.exchange_s += weight * times.exchange_s;
  sum.reduce_s += weight * times.reduce_s;
  sum.optimizer_s += weight * times.optimizer_s;
  sum.gather_s += weight * times.gather_s;
  sum.total_s += weight * times.total_s;
}

}  // namespace

BenchStepResult bench_step(const BenchStepOptions& options, const parallel::Communicator& role) {
  TrainerOptions trainer_options = options.trainer;
  trainer_options.total_steps = options.warmup_steps + options.rounds * options.steps_per_round;
  Trainer trainer(trainer_options, role);
  const double tokens = static_cast<double>(trainer_options.global_batch * trainer_options.seq);
  load_bench_weights(options.model, trainer);
  set_routing(trainer, options.routing);
  BenchBatches batches(options.model, trainer);
  StepMetrics last;
  const auto train_one = [&] {
    last = trainer.step(batches.next());
    return last.times.total_s;
  };
  for (std::int64_t i = 0; i < options.warmup_steps; ++i) {
    train_one();
  }
  // What training needs is its peak so far; the limit's own buffers come after.
  BenchStepResult result;
  result.peak_rss_bytes = last.peak_rss_bytes;

  const nn::StoredTotals stored_before = nn::stored_totals();
  GemmLimitOptions limit_options{trainer_options.role.model,
                                 parallel::scalar_type(trainer_options.role.compute),
                                 trainer_options.global_batch * trainer_options.seq, trainer_options.seq, 5};
  GemmLimit limit(limit_options, trainer.grid());
  std::vector<double> rates, limits, ratios;
  const double weight = 1.0 / static_cast<double>(options.rounds * options.steps_per_round);
  for (std::int64_t round = 0; round < options.rounds; ++round) {
    const double limit_s = limit.measure();
    std::vector<double> seconds;
    for (std::int64_t i = 0; i < options.steps_per_round; ++i) {
      role.barrier();
      seconds.push_back(train_one());
      add_times(result.times, last.times, weight);
    }
    limits.push_back(tokens / limit_s);
    rates.push_back(tokens / spread_of(seconds).median);
    ratios.push_back(rates.back() / limits.back());
  }
  const nn::StoredTotals stored = nn::stored_totals();
  result.stored_numbers =
      (stored.numbers - stored_before.numbers) / (options.rounds * options.steps_per_round);
  result.stored_bytes = (stored.bytes - stored_before.bytes) / (options.rounds * options.steps_per_round);
  result.tokens_per_s = spread_of(rates).median;
  result.gemm_limit_tokens_per_s = spread_of(limits).median;
  const Spread ratio = spread_of(ratios);
  result.ratio = ratio.median;
  result.ratio_min = ratio.min;
  result.ratio_max = ratio.max;
  result.products = limit.products();
  for (int i = 0; i < parallel::num_traffic_kinds; ++i) {
    const auto index = static_cast<std::size_t>(i);
    result.bytes_sent_per_step[std::string(parallel::traffic_names[index])] = last.bytes_sent[index];
  }
  return result;
}

}  // namespace athanor::train
