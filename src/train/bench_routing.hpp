// `athanor bench step` with the routing of a trained model, beside perfectly balanced routing, and at its
// worst.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.hpp"
#include "parallel/communicator.hpp"
#include "train/bench_support.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// Which experts a benchmark's tokens go to.
enum class BenchRouting {
  model,     ///< those that the router chooses
  balanced,  ///< each expert gets the same number
  worst,     ///< all tokens choose the first experts, which rank 0 of each expert group holds
};

/// What a benchmark trains on and from.
struct BenchModelOptions {
  std::string init;                       ///< checkpoint folder with the weights; empty: random ones
  std::vector<data::SourceSpec> sources;  ///< token files; empty: synthetic tokens
};

/// Gives the trainer the weights of `init`. Collective over the role. Throws CheckpointError, ConfigError.
void load_bench_weights(const BenchModelOptions& options, Trainer& trainer);

/// The batches of a benchmark's steps.
class BenchBatches {
 public:
  BenchBatches(const BenchModelOptions& options, const Trainer& trainer);
  ~BenchBatches();
  BenchBatches(const BenchBatches&) = delete;
  BenchBatches& operator=(const BenchBatches&) = delete;
  /// This replica's micro-batches of the next step.
  std::vector<data::Batch> next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Forces the trainer's routing, or stops forcing it.
void set_routing(Trainer& trainer, BenchRouting routing);

struct BenchRoutingOptions {
  TrainerOptions trainer;
  BenchModelOptions model;
  std::int64_t warmup_steps = 3;
  std::int64_t rounds = 5;  ///< alternations of the two routings
  std::int64_t steps_per_round = 3;
};

struct BenchRoutingResult {
  Spread model_s;               ///< seconds of a step by the router's choices, medians of the rounds
  Spread balanced_s;            ///< the same with balanced choices
  Spread ratio;                 ///< of each round, model to balanced
  double expert_use_std = 0.0;  ///< of the router's choices in the last step, mean over layers
  double largest_load = 0.0;    ///< most rows of a rank over the mean of its group, worst layer of that step
  std::int64_t peak_rss_bytes = 0;
};

/// Times the router's choices and balanced ones in turn with the same weights and tokens. Collective over
/// `role`.
BenchRoutingResult bench_routing(const BenchRoutingOptions& options, const parallel::Communicator& role);

}  // namespace athanor::train
