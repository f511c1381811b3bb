#include "data/mixture.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.hpp"
#include "data/permutation.hpp"

namespace athanor::data {

std::vector<std::int64_t> largest_remainder(const std::vector<double>& weights, std::int64_t total) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::int64_t> counts(weights.size());
  std::vector<double> remainders(weights.size());
  std::int64_t given = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double share = weights[i] / sum * static_cast<double>(total);
    counts[i] = static_cast<std::int64_t>(std::floor(share));
    remainders[i] = share - std::floor(share);
    given += counts[i];
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return remainders[a] > remainders[b]; });
  for (std::size_t i = 0; given < total; i = (i + 1) % order.size(), ++given) {
    ++counts[order[i]];
  }
  return counts;
}

Mixture::Mixture(std::vector<MixtureDomain> domains, std::uint64_t seed)
    : domains_(std::move(domains)), placements_(seed, base::RandomPurpose::mixture, "placement") {
  ATHANOR_CHECK(!domains_.empty(), "a mixture of no domains");
  std::vector<double> weights;
  for (const MixtureDomain& domain : domains_) {
    if (!(domain.weight > 0.0) || !std::isfinite(domain.weight)) {
      throw base::ConfigError("domain {} has weight {} (weights are positive) leave it out or give a weight",
                              domain.name, domain.weight);
    }
    ATHANOR_CHECK(domain.num_samples >= 1, "domain {} has no sample", domain.name);
    weights.push_back(domain.weight);
    orders_.emplace_back(seed, base::RandomPurpose::data_permutation, domain.name);
  }
  positions_per_period_ = largest_remainder(weights, period);
  for (std::size_t i = 0; i < domains_.size(); ++i) {
    if (positions_per_period_[i] == 0) {
      throw base::ConfigError(
          "domain {} would never be read (its weight {} gives it no position in a period of {}) raise its "
          "weight to "
          "at least 1/{} of the sum, or leave it out",
          domains_[i].name, domains_[i].weight, period, period);
    }
  }
}

std::shared_ptr<const Mixture::Placement> Mixture::placement(std::int64_t period_index) const {
  {
    const std::lock_guard lock(mutex_);
    if (last_ && last_->period_index == period_index) {
      return last_;
    }
  }
  auto made = std::make_shared<Placement>();
  made->period_index = period_index;
  const KeyedPermutation place(placements_, static_cast<std::uint64_t>(period_index), period);
  std::int64_t next = 0;
  for (std::size_t domain = 0; domain < domains_.size(); ++domain) {
    for (std::int64_t i = 0; i < positions_per_period_[domain]; ++i, ++next) {
      made->slots[static_cast<std::size_t>(place(next))].domain = static_cast<std::int32_t>(domain);
    }
  }
  std::vector<std::int32_t> seen(domains_.size());
  for (Slot& slot : made->slots) {
    slot.rank = seen[static_cast<std::size_t>(slot.domain)]++;
  }
  const std::lock_guard lock(mutex_);
  last_ = made;
  return made;
}

MixtureSample Mixture::sample_at(std::int64_t position) const {
  ATHANOR_CHECK(position >= 0, "training position {}", position);
  const std::int64_t period_index = position / period;
  const Slot slot = placement(period_index)->slots[static_cast<std::size_t>(position % period)];
  const std::int64_t per_period = positions_per_period_[static_cast<std::size_t>(slot.domain)];
  return {slot.domain, ordered_sample(slot.domain, period_index * per_period + slot.rank)};
}

std::int64_t Mixture::samples_before(std::int64_t domain, std::int64_t position) const {
  const std::int64_t period_index = position / period;
  const auto made = placement(period_index);
  const auto in_period = std::count_if(made->slots.begin(), made->slots.begin() + position % period,
                                       [&](const Slot& slot) { return slot.domain == domain; });
  return period_index * positions_per_period_[static_cast<std::size_t>(domain)] + in_period;
}

std::int64_t Mixture::ordered_sample(std::int64_t domain, std::int64_t index) const {
  const auto d = static_cast<std::size_t>(domain);
  const std::int64_t size = domains_[d].num_samples;
  return KeyedPermutation(orders_[d], static_cast<std::uint64_t>(index / size), size)(index % size);
}

}  // namespace athanor::data
