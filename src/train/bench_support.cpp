#include "train/bench_support.hpp"

#include <algorithm>
#include <cmath>

#include "base/philox.hpp"

namespace athanor::train {
namespace {

// Tokens with the skew of natural text (Zipf), so that embedding rows and routing are not unnaturally even.
std::int32_t zipf_token(double uniform, std::int64_t vocab) {
  const double token = std::exp(uniform * std::log(static_cast<double>(vocab))) - 1.0;
  return static_cast<std::int32_t>(std::min<double>(token, static_cast<double>(vocab - 1)));
}

}  // namespace

std::vector<data::Batch> synthetic_step(const TrainerOptions& options, const data::ReplicaSlice& replica,
                                        std::int64_t step) {
  const base::PhiloxStream stream(options.seed, base::RandomPurpose::test, "bench tokens");
  const std::int64_t per_replica = options.global_batch / replica.count;
  const std::int64_t micro = options.role.micro_batch > 0 ? options.role.micro_batch : per_replica;
  std::vector<data::Batch> batches;
  for (std::int64_t first = 0; first < per_replica; first += micro) {
    data::Batch batch;
    batch.rows = micro;
    batch.seq = options.seq;
    for (std::int64_t row = 0; row < micro; ++row) {
      const std::int64_t sample = step * options.global_batch + replica.index * per_replica + first + row;
      batch.sample_ids.push_back(sample);
      batch.domains.push_back(0);
      for (std::int64_t position = 0; position <= options.seq; ++position) {
        const std::int32_t token = zipf_token(
            stream.uniform(static_cast<std::uint64_t>(sample), static_cast<std::uint64_t>(position)),
            options.role.model.vocab_size);
        if (position < options.seq) {
          batch.tokens.push_back(token);
          batch.positions.push_back(static_cast<std::int32_t>(position));
          batch.documents.push_back(0);
        }
        if (position > 0) {
          batch.labels.push_back(token);
        }
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

Spread spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values.front(), values.back()};
}

}  // namespace athanor::train
