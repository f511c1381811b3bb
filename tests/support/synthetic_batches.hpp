// Batches of pseudo-random tokens that are a pure function of (seed, sample, position), on any layout.
#pragma once

#include <cstdint>
#include <vector>

#include "base/philox.hpp"
#include "data/batch.hpp"

namespace athanor::tests {

struct SyntheticData {
  std::int64_t vocab = 64;
  std::int64_t seq = 16;
  std::int64_t global_batch = 8;
  std::uint64_t seed = 7;
  bool documents = false;  ///< every sequence is cut into two documents
};

inline data::Batch synthetic_rows(const SyntheticData& data, std::int64_t first, std::int64_t rows) {
  const base::PhiloxStream stream(data.seed, base::RandomPurpose::test, "tokens");
  data::Batch batch;
  batch.rows = rows;
  batch.seq = data.seq;
  for (std::int64_t sample = first; sample < first + rows; ++sample) {
    batch.sample_ids.push_back(sample);
    batch.domains.push_back(0);
    const std::int64_t cut = data.documents ? 1 + sample % (data.seq - 1) : data.seq;
    std::int32_t token = static_cast<std::int32_t>(stream.bits(static_cast<std::uint64_t>(sample), 999) % 13);
    for (std::int64_t position = 0; position < data.seq; ++position) {
      batch.tokens.push_back(token);
      batch.positions.push_back(static_cast<std::int32_t>(position < cut ? position : position - cut));
      batch.documents.push_back(position < cut ? 0 : 1);
      // Half predictable, so that there is something to learn.
      const std::uint64_t noise =
          stream.bits(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(position));
      const auto vocab = static_cast<std::uint64_t>(data.vocab);
      token = static_cast<std::int32_t>(noise % 2 == 0 ? (static_cast<std::uint64_t>(token) * 3 + 1) % vocab
                                                       : (noise >> 8) % vocab);
      batch.labels.push_back(token);
    }
  }
  return batch;
}

/// The micro-batches of one replica for step `step`.
inline std::vector<data::Batch> synthetic_step(const SyntheticData& data, const data::ReplicaSlice& replica,
                                               std::int64_t micro, std::int64_t step) {
  const std::int64_t per_replica = data.global_batch / replica.count;
  std::vector<data::Batch> batches;
  for (std::int64_t first = 0; first < per_replica; first += micro) {
    batches.push_back(
        synthetic_rows(data, step * data.global_batch + replica.index * per_replica + first, micro));
  }
  return batches;
}

}  // namespace athanor::tests
