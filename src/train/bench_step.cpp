#include "train/bench_step.hpp"

#include <algorithm>
#include <cmath>

#include "base/philox.hpp"
#include "parallel/dtype.hpp"

namespace athanor::train {
namespace {

// Tokens with the skew of natural text (Zipf), so that embedding rows and routing are not unnaturally even.
std::int32_t zipf_token(double uniform, std::int64_t vocab) {
  const double token = std::exp(uniform * std::log(static_cast<double>(vocab))) - 1.0;
  return static_cast<std::int32_t>(std::min<double>(token, static_cast<double>(vocab - 1)));
}

// This replica's micro-batches of synthetic step `step`: the same samples on every layout.
std::vector<data::Batch> synthetic_step(const TrainerOptions& options, const data::ReplicaSlice& replica,
                                        std::int64_t step) {
  const base::PhiloxStream stream(options.seed, base::RandomPurpose::test, "bench tokens");
  const std::int64_t per_replica = options.global_batch / replica.count;
  const std::int64_t micro = options.role.micro_batch > 0 ? options.role.micro_batch : per_replica;
  std::vector<data::Batch> batches;
  for (std::int64_t first = 0; first < per_replica; first += micro) {
    data::Batch batch;
    batch.rows = micro;
    batch.seq = options.seq;
    for (std::int64_t row = 0; row < micro; ++row) {
      const std::int64_t sample = step * options.global_batch + replica.index * per_replica + first + row;
      batch.sample_ids.push_back(sample);
      batch.domains.push_back(0);
      for (std::int64_t position = 0; position <= options.seq; ++position) {
        const std::int32_t token = zipf_token(
            stream.uniform(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(position)),
            options.role.model.vocab_size);
        if (position < options.seq) {
          batch.tokens.push_back(token);
          batch.positions.push_back(static_cast<std::int32_t>(position));
          batch.documents.push_back(0);
        }
        if (position > 0) {
          batch.labels.push_back(token);
        }
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

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
  std::int64_t step = 0;
  StepMetrics last;
  const auto train_one = [&] {
    last = trainer.step(synthetic_step(trainer_options, trainer.replica(), step++));
    return last.times.total_s;
  };
  for (std::int64_t i = 0; i < options.warmup_steps; ++i) {
    train_one();
  }
  // What training needs is its peak so far; the limit's own buffers come after.
  BenchStepResult result;
  result.peak_rss_bytes = last.peak_rss_bytes;

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
    rates.push_back(tokens / median(seconds));
    ratios.push_back(rates.back() / limits.back());
  }
  result.tokens_per_s = median(rates);
  result.gemm_limit_tokens_per_s = median(limits);
  result.ratio = median(ratios);
  result.ratio_min = *std::min_element(ratios.begin(), ratios.end());
  result.ratio_max = *std::max_element(ratios.begin(), ratios.end());
  result.products = limit.products();
  for (int i = 0; i < parallel::num_traffic_kinds; ++i) {
    const auto index = static_cast<std::size_t>(i);
    result.bytes_sent_per_step[std::string(parallel::traffic_names[index])] = last.bytes_sent[index];
  }
  return result;
}

}  // namespace athanor::train
