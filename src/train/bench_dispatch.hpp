// `athanor bench dispatch`: tokens of one sparse layer to their experts and back, forward and backward, in
// each number format of the wire and for even and uneven routings, against a memory copy of as many bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/precision.hpp"
#include "parallel/communicator.hpp"
#include "parallel/process_grid.hpp"
#include "train/bench_support.hpp"

namespace athanor::train {

struct BenchDispatchOptions {
  parallel::ParallelDims dims;
  std::int64_t tokens = 2048;  ///< of a rank in one micro-batch
  std::int64_t hidden = 256;
  std::int64_t experts = 128;
  std::int64_t top_k = 4;
  base::ComputeType compute = base::ComputeType::f32;
  base::Fp8Format fp8_format = base::Fp8Format::e4m3;
  std::uint64_t seed = 0;
  std::int64_t warmup_steps = 3;
  std::int64_t rounds = 5;  ///< alternations of the copy and all cases
  std::int64_t steps_per_round = 3;
};

/// One routing through one wire.
struct DispatchCase {
  std::string routing;  ///< "uniform", "skewed"
  base::WireType dispatch = base::WireType::full;
  base::WireType combine = base::WireType::full;
  Spread tokens_per_s;  ///< all ranks; one token goes to its experts and back, and so do its gradients
  Spread limit;         ///< the same for a copy of the bytes that a rank gets from others
  Spread ratio;         ///< of the two of one round
  std::int64_t dispatch_bytes =
      0;  ///< counted, one step, all ranks: tokens, gradients of results, ids and counts
  std::int64_t combine_bytes = 0;  ///< counted: results, gradients of tokens
  std::int64_t dispatch_formula = 0;
  std::int64_t combine_formula = 0;
  std::int64_t dispatch_f32 = 0;  ///< by the formula, if numbers travelled in f32
  std::int64_t combine_f32 = 0;

  bool agrees() const { return dispatch_bytes == dispatch_formula && combine_bytes == combine_formula; }
  /// Bytes of the two exchanges of `dispatch`, and of all four, against f32's.
  double dispatch_share() const;
  double total_share() const;
};

/// How uneven a routing is over the role.
struct RoutingShape {
  std::string name;
  double expert_use_std = 0.0;  ///< std over experts of f_i / mu
  double rank_load = 0.0;       ///< rows of the fullest rank over the mean
};

struct BenchDispatchResult {
  std::vector<RoutingShape> routings;
  std::vector<DispatchCase> cases;
};

/// What a step sends for `rows` choices that change ranks: both exchanges of a direction, without the counts.
std::int64_t row_bytes_of_step(std::int64_t rows, std::int64_t hidden, base::WireType wire,
                               base::ComputeType compute);

/// Collective over `role`.
BenchDispatchResult bench_dispatch(const BenchDispatchOptions& options, const parallel::Communicator& role);

}  // namespace athanor::train
