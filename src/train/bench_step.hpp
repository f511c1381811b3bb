// `athanor bench step`: whole training steps against the GEMM limit, alternating in one run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"
#include "train/bench_routing.hpp"
#include "train/gemm_limit.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

struct BenchStepOptions {
  TrainerOptions trainer;
  BenchModelOptions model;
  BenchRouting routing = BenchRouting::model;
  std::int64_t warmup_steps = 3;
  std::int64_t rounds = 5;  ///< alternations of limit and steps
  std::int64_t steps_per_round = 3;
};

struct BenchStepResult {
  double tokens_per_s = 0.0;             ///< median over rounds, whole job
  double gemm_limit_tokens_per_s = 0.0;  ///< median over rounds
  double ratio = 0.0;                    ///< median of the rounds' ratios
  double ratio_min = 0.0;
  double ratio_max = 0.0;
  std::int64_t peak_rss_bytes = 0;                          ///< largest rank
  std::map<std::string, std::int64_t> bytes_sent_per_step;  ///< by purpose, summed over ranks
  /// Numbers that this rank kept in FP8 for backward in a step, and the bytes they took.
  std::int64_t stored_numbers = 0;
  std::int64_t stored_bytes = 0;
  std::vector<GemmProduct> products;
  StepTimes times;  ///< mean per step, this rank
};

/// Collective over `role`.
BenchStepResult bench_step(const BenchStepOptions& options, const parallel::Communicator& role);

}  // namespace athanor::train
