#include "train/bench_routing.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "data/sampler.hpp"
#include "parallel/run_agreed.hpp"
#include "train/state_dict.hpp"
#include "train/student_weights.hpp"

namespace athanor::train {
namespace {

// int64 [tokens of this rank, k]: expert (token * k + choice) mod E, or always the first k experts.
at::Tensor forced_ids(const nn::TokenBatch& batch, const parallel::ProcessGrid& grid,
                      const moe::MoeOptions& options, BenchRouting routing) {
  const auto slice =
      nn::SequenceSlice::of(batch.tokens_BS.size(1), batch.real_seq, grid.rank(parallel::Axis::tensor),
                            grid.size(parallel::Axis::tensor));
  const at::Tensor choices = at::arange(options.top_k, at::kLong);
  if (routing == BenchRouting::worst) {
    return choices.expand({batch.tokens_BS.size(0) * slice.real_count, options.top_k}).contiguous();
  }
  const at::Tensor position = at::arange(slice.first, slice.first + slice.real_count, at::kLong);
  const at::Tensor token =
      (batch.sample_ids_B.unsqueeze(1) * batch.real_seq + position.unsqueeze(0)).reshape({-1, 1});
  return (token * options.top_k + choices).remainder(options.num_experts).contiguous();
}

// Most rows of a rank over the mean, worst layer.
double largest_load(const StepMetrics& metrics, int ep) {
  double largest = 0.0;
  for (const std::vector<std::int64_t>& counts : metrics.expert_counts) {
    const auto local = static_cast<std::ptrdiff_t>(counts.size()) / ep;
    const double mean =
        static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})) / ep;
    for (int rank = 0; rank < ep; ++rank) {
      const auto first = counts.begin() + rank * local;
      largest = std::max(largest,
                         static_cast<double>(std::accumulate(first, first + local, std::int64_t{0})) / mean);
    }
  }
  return largest;
}

}  // namespace

void load_bench_weights(const BenchModelOptions& options, Trainer& trainer) {
  if (options.init.empty()) {
    return;
  }
  std::optional<StagedState> staged;
  parallel::run_agreed(trainer.grid().role(), [&] {
    const checkpoint::CheckpointReader reader(options.init);
    check_same_shapes(trainer, reader);
    staged.emplace(trainer, reader, InitialWeights{});
  });
  std::move(*staged).apply(trainer);
}

struct BenchBatches::State {
  TrainerOptions options;
  data::ReplicaSlice replica;
  std::optional<data::Dataset> dataset;
  std::optional<data::BatchSampler> sampler;
  data::DataCursor cursor;
  std::int64_t step = 0;
};

BenchBatches::BenchBatches(const BenchModelOptions& options, const Trainer& trainer)
    : state_(std::make_unique<State>(State{trainer.options(), trainer.replica(), {}, {}, {}})) {
  if (options.sources.empty()) {
    return;
  }
  State& state = *state_;
  state.dataset.emplace(data::DatasetOptions{options.sources, state.options.seq, state.options.seed, false});
  if (state.dataset->max_token_id() >= state.options.role.model.vocab_size) {
    throw base::DataError(
        "data.train holds token id {} (model.vocab_size is {}) use the tokenizer that the model was set up "
        "for",
        state.dataset->max_token_id(), state.options.role.model.vocab_size);
  }
  const std::int64_t per_replica = state.options.global_batch / state.replica.count;
  const std::int64_t micro =
      state.options.role.micro_batch > 0 ? state.options.role.micro_batch : per_replica;
  state.sampler.emplace(*state.dataset,
                        data::SamplerOptions{state.options.global_batch, micro, state.replica});
}

BenchBatches::~BenchBatches() = default;

std::vector<data::Batch> BenchBatches::next() {
  State& state = *state_;
  if (!state.sampler) {
    return synthetic_step(state.options, state.replica, state.step++);
  }
  std::vector<data::Batch> batches = state.sampler->read_step(state.cursor);
  state.cursor = state.sampler->advance(state.cursor);
  return batches;
}

void set_routing(Trainer& trainer, BenchRouting routing) {
  if (routing == BenchRouting::model) {
    trainer.force_routing({});
    return;
  }
  const moe::MoeOptions& options = trainer.options().role.model.moe;
  ATHANOR_CHECK(options.num_experts > 0, "a dense model routes nothing");
  trainer.force_routing([&trainer, &options, routing](const nn::TokenBatch& batch) {
    const at::Tensor ids = forced_ids(batch, trainer.grid(), options, routing);
    return std::vector<at::Tensor>(static_cast<std::size_t>(trainer.model().num_sparse_layers()), ids);
  });
}

BenchRoutingResult bench_routing(const BenchRoutingOptions& options, const parallel::Communicator& role) {
  TrainerOptions trainer_options = options.trainer;
  trainer_options.total_steps = options.warmup_steps + 2 * options.rounds * options.steps_per_round;
  Trainer trainer(trainer_options, role);
  load_bench_weights(options.model, trainer);
  BenchBatches batches(options.model, trainer);
  StepMetrics last;
  const auto train_one = [&](BenchRouting routing) {
    set_routing(trainer, routing);
    const std::vector<data::Batch> step = batches.next();
    role.barrier();
    last = trainer.step(step);
    return last.times.total_s;
  };
  for (std::int64_t i = 0; i < options.warmup_steps; ++i) {
    train_one(i % 2 == 0 ? BenchRouting::model : BenchRouting::balanced);
  }
  BenchRoutingResult result;
  std::vector<double> model_s, balanced_s, ratios;
  for (std::int64_t round = 0; round < options.rounds; ++round) {
    const auto median_of = [&](BenchRouting routing) {
      std::vector<double> seconds;
      for (std::int64_t i = 0; i < options.steps_per_round; ++i) {
        seconds.push_back(train_one(routing));
      }
      return spread_of(seconds).median;
    };
    balanced_s.push_back(median_of(BenchRouting::balanced));
    model_s.push_back(median_of(BenchRouting::model));
    ratios.push_back(model_s.back() / balanced_s.back());
  }
  result.model_s = spread_of(model_s);
  result.balanced_s = spread_of(balanced_s);
  result.ratio = spread_of(ratios);
  result.expert_use_std = last.expert_use_std;
  result.largest_load = largest_load(last, trainer.grid().size(parallel::Axis::expert));
  result.peak_rss_bytes = last.peak_rss_bytes;
  return result;
}

}  // namespace athanor::train
