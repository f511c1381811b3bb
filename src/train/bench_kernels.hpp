// `athanor bench kernels`: each kernel at the run's shape against its plain reference and against what the
// machine could do at best.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/transformer_config.hpp"
#include "parallel/communicator.hpp"
#include "train/bench_support.hpp"

namespace athanor::train {

struct BenchKernelsOptions {
  model::TransformerConfig model;
  std::int64_t tokens = 0;  ///< of this rank in one step
  std::int64_t seq = 0;
  std::int64_t expert_ranks = 1;  ///< ranks that share the experts (parallel.ep)
  std::int64_t rounds = 5;
};

/// One kernel; medians over rounds.
struct KernelFigure {
  std::string name;
  std::string unit;  ///< of the rates: "GB/s" (bytes that must be read and written) or "GFLOP/s"
  double rate = 0.0;
  double reference_rate = 0.0;  ///< the plain reference, in f32
  std::string limit_name;       ///< "triad" or "matrix product"
  double limit = 0.0;
  Spread ratio;    ///< of each round's rate to its limit
  Spread speedup;  ///< of each round's rate to the reference's
};

/// All kernels, all ranks working at once, one after another: in each round the limit, the kernel and the
/// reference in turn. Rates moved by memory are compared with a + s b over as many bytes, products with the
/// fastest square product of 512 of the same type. Figures are this rank's. Collective.
std::vector<KernelFigure> bench_kernels(const BenchKernelsOptions& options,
                                        const parallel::Communicator& role);

}  // namespace athanor::train
