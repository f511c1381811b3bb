#include "data/sampler.hpp"

#include "base/error.hpp"

namespace athanor::data {

BatchSampler::BatchSampler(const Dataset& dataset, const SamplerOptions& options)
    : dataset_(&dataset), options_(options) {
  const ReplicaSlice& replica = options.replica;
  ATHANOR_CHECK(replica.count >= 1 && replica.index >= 0 && replica.index < replica.count, "replica {} of {}",
                replica.index, replica.count);
  if (options.global_batch < 1 || options.global_batch % replica.count != 0) {
    throw base::ConfigError(
        "batch.global={} is not a positive multiple of the {} data-parallel replicas (each reads "
        "the same number of sequences) use a multiple of {}",
        options.global_batch, replica.count, replica.count);
  }
  const std::int64_t per_replica = options.global_batch / replica.count;
  if (options.micro_batch < 1 || per_replica % options.micro_batch != 0) {
    throw base::ConfigError(
        "batch.micro={} does not divide the {} sequences of a replica (batch.global={} over {} "
        "replicas) use a divisor of {}",
        options.micro_batch, per_replica, options.global_batch, replica.count, per_replica);
  }
}

std::int64_t BatchSampler::micro_batches_per_step() const {
  return options_.global_batch / options_.replica.count / options_.micro_batch;
}

std::vector<Batch> BatchSampler::read_step(const DataCursor& cursor) const {
  const std::int64_t per_replica = options_.global_batch / options_.replica.count;
  const std::int64_t first = cursor.next_position + options_.replica.index * per_replica;
  std::vector<Batch> batches;
  for (std::int64_t i = 0; i < micro_batches_per_step(); ++i) {
    batches.push_back(dataset_->read_training(first + i * options_.micro_batch, options_.micro_batch));
  }
  return batches;
}

DataCursor BatchSampler::advance(const DataCursor& cursor) const {
  return {cursor.next_position + options_.global_batch};
}

}  // namespace athanor::data
