// Which domain, and which sample of it, belongs to each training position.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/philox.hpp"

namespace athanor::data {

/// One domain of a mixture.
struct MixtureDomain {
  std::string name;     ///< keys the domain's order: it does not change when other domains come or go
  double weight = 1.0;  ///< > 0; only ratios count
  std::int64_t num_samples = 0;  ///< >= 1
};

/// Where a training position reads.
struct MixtureSample {
  std::int64_t domain = 0;
  std::int64_t sample = 0;  ///< index within the domain
};

/// Positions come in periods of 1,024. In each, domain d has the same number n_d of positions (largest
/// remainder of its weight), placed by a permutation keyed by (seed, period); its j-th one, in order of
/// position, is element period * n_d + j of the domain's endless order, which is one keyed permutation of its
/// samples per epoch. All of it is arithmetic: no position needs the ones before it. Thread-safe.
class Mixture {
 public:
  static constexpr std::int64_t period = 1024;

  /// Throws ConfigError for a weight that is not positive and finite, or so small that a domain gets no
  /// position.
  Mixture(std::vector<MixtureDomain> domains, std::uint64_t seed);

  /// n_d of each domain; they sum to `period`.
  const std::vector<std::int64_t>& positions_per_period() const { return positions_per_period_; }
  /// What training position `position` >= 0 reads.
  MixtureSample sample_at(std::int64_t position) const;
  /// How many samples of `domain` the positions before `position` read: the domain's cursor.
  std::int64_t samples_before(std::int64_t domain, std::int64_t position) const;
  /// Element `index` >= 0 of the endless order of `domain`.
  std::int64_t ordered_sample(std::int64_t domain, std::int64_t index) const;

 private:
  struct Slot {
    std::int32_t domain = 0;
    std::int32_t rank = 0;  // how many earlier slots of the period have the same domain
  };
  struct Placement {
    std::int64_t period_index = -1;
    std::array<Slot, period> slots;
  };
  std::shared_ptr<const Placement> placement(std::int64_t period_index) const;

  std::vector<MixtureDomain> domains_;
  std::vector<base::PhiloxStream> orders_;
  std::vector<std::int64_t> positions_per_period_;
  base::PhiloxStream placements_;
  // The last period that was asked for: neighbours ask for the same one.
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Placement> last_;
};

/// Splits `total` in proportion to `weights` by largest remainder; ties go to the earlier entry.
std::vector<std::int64_t> largest_remainder(const std::vector<double>& weights, std::int64_t total);

}  // namespace athanor::data
