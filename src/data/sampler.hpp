// From a global step to the rows one replica reads, ahead of time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "data/batch.hpp"
#include "data/dataset.hpp"

namespace athanor::data {

/// All that is needed to go on: one number (and the mixture's segments once weights can change).
struct DataCursor {
  std::int64_t next_position = 0;  ///< global position of the next unread sample
};

struct SamplerOptions {
  std::int64_t global_batch = 8;  ///< sequences of a step over all replicas
  std::int64_t micro_batch = 8;   ///< sequences of one micro-batch of one replica
  ReplicaSlice replica;
};

/// Replica r reads positions [r*G/count, (r+1)*G/count) of each global batch of G, in micro-batches of
/// consecutive rows. Throws ConfigError when the numbers do not divide.
class BatchSampler {
 public:
  BatchSampler(const Dataset& dataset, const SamplerOptions& options);
  std::int64_t micro_batches_per_step() const;
  /// The replica's micro-batches of the step that starts at `cursor`.
  std::vector<Batch> read_step(const DataCursor& cursor) const;
  DataCursor advance(const DataCursor& cursor) const;

 private:
  const Dataset* dataset_ = nullptr;
  SamplerOptions options_;
};

/// Reads the next `depth` steps in a thread of its own. Errors surface at take(), after the steps that were
/// read before them, and at every later one. Keeps a copy of the sampler; the dataset must outlive it.
class Prefetcher {
 public:
  Prefetcher(const BatchSampler& sampler, const DataCursor& start, int depth = 2);
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;
  /// The micro-batches of the next step, in order; waits when they are not read yet.
  std::vector<Batch> take();
  /// Cursor of the step that take() will return next.
  DataCursor cursor() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::data
