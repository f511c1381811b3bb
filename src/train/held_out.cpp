#include "train/held_out.hpp"

#include <algorithm>

#include "train/row_tags.hpp"

namespace athanor::train {

HeldOutSamples::HeldOutSamples(double share, std::uint64_t seed)
    : share_(share), stream_(seed, base::RandomPurpose::signal_sampling, "distill.held_out") {}

std::vector<bool> HeldOutSamples::rows(const data::Batch& batch) const {
  std::vector<bool> held(static_cast<std::size_t>(batch.rows), false);
  if (!draws_any()) {
    return held;
  }
  const std::vector<std::uint64_t> hashes = tags_of(batch).token_hashes;
  for (std::size_t row = 0; row < held.size(); ++row) {
    held[row] = stream_.uniform(hashes[row]) < share_;
  }
  return held;
}

std::int64_t HeldOutSamples::valid_labels(const data::Batch& batch) const {
  const std::vector<bool> held = rows(batch);
  std::int64_t labels = 0;
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    if (held[static_cast<std::size_t>(row)]) {
      const auto first = batch.labels.begin() + row * batch.seq;
      labels += std::count_if(first, first + batch.seq, [](std::int32_t label) { return label >= 0; });
    }
  }
  return labels;
}

}  // namespace athanor::train
