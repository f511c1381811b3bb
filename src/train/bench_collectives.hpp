// `athanor bench collectives`: every algorithm of every collective that training uses, against a plain memory
// copy of the bytes that must move, alternating in one run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/communicator.hpp"
#include "train/bench_support.hpp"

namespace athanor::train {

struct BenchCollectivesOptions {
  std::int64_t min_bytes = 1024;  ///< of a rank's message; sizes go up in steps of 4
  std::int64_t max_bytes = 64 * 1024 * 1024;
  std::int64_t rounds = 5;  ///< alternations of the copy and all algorithms
};

/// One way of doing one collective.
struct AlgorithmTime {
  std::string name;
  /// Nothing: MPI's own sum, which is measured for comparison but has no fixed bits.
  std::optional<parallel::Algorithm> algorithm;
  bool is_chosen = false;  ///< by the table that the job runs with
  Spread seconds;          ///< of one call, slowest rank
  Spread ratio;            ///< of the copy's time to it in one round
};

/// One collective at one size.
struct CollectiveCase {
  std::string name;               ///< as in the code that calls it: "reduce_scatter_sum"
  parallel::Operation operation;  ///< whose algorithms it uses
  std::int64_t bytes = 0;         ///< the tensor that it is about, on one rank; sent to others in exchanges
  std::int64_t moved_bytes = 0;   ///< that a rank must get from others; 64, a cache line, for a barrier
  Spread copy_s;                  ///< a memory copy of them on all ranks at once
  std::vector<AlgorithmTime> algorithms;

  /// Index of the one that the table chooses.
  std::size_t chosen() const;
  /// Index of the fastest median among those that may be chosen.
  std::size_t best() const;
};

/// Cases of at least two ranks; none on one. Collective over `world`, whose table is as before afterwards.
std::vector<CollectiveCase> bench_collectives(const BenchCollectivesOptions& options,
                                              const parallel::Communicator& world);

/// Rules for groups of up to `ranks` that choose the best of each size measured; one that is less than a
/// twentieth faster than the table's choice is not worth a rule. Pure.
std::vector<parallel::AlgorithmRule> best_rules(const std::vector<CollectiveCase>& cases, int ranks);

}  // namespace athanor::train
