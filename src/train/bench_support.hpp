// What the benchmarks share: data without files, and figures over repeats.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

/// A replica's micro-batches of synthetic step `step` (tokens by Zipf's law): the same samples on every
/// layout.
std::vector<data::Batch> synthetic_step(const TrainerOptions& options, const data::ReplicaSlice& replica,
                                        std::int64_t step);

/// A figure over repeats.
struct Spread {
  double median = 0.0;
  double min = 0.0;
  double max = 0.0;
};
/// `values` must not be empty.
Spread spread_of(std::vector<double> values);

}  // namespace athanor::train
