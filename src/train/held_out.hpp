// The samples of the training data that a student is measured on and not trained on.
#pragma once

#include <cstdint>
#include <vector>

#include "base/philox.hpp"
#include "data/batch.hpp"

namespace athanor::train {

/// Draws samples by the run's seed and their own tokens: the same ones on any layout, after a restart, and in
/// every epoch.
class HeldOutSamples {
 public:
  /// `share` of all samples, in [0, 1).
  HeldOutSamples(double share, std::uint64_t seed);

  bool draws_any() const { return share_ > 0.0; }
  /// [rows]: whether a row of the batch is held out.
  std::vector<bool> rows(const data::Batch& batch) const;
  /// Valid labels of the rows that are held out.
  std::int64_t valid_labels(const data::Batch& batch) const;

 private:
  double share_;
  base::PhiloxStream stream_;
};

}  // namespace athanor::train
