// Token batches as plain arrays.
#pragma once

#include <cstdint>
#include <vector>

namespace athanor::data {

/// Which part of every global batch a data-parallel replica reads.
struct ReplicaSlice {
  std::int64_t index = 0;
  std::int64_t count = 1;
};

/// Rows of consecutive samples; all arrays are row-major [rows, seq] unless noted.
struct Batch {
  std::int64_t rows = 0;
  std::int64_t seq = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> labels;      ///< next token; -100: not trained on
  std::vector<std::int32_t> positions;   ///< restart at documents when attention is reset there
  std::vector<std::int32_t> documents;   ///< document ids within the sample; all 0 unless attention is reset
  std::vector<std::int64_t> sample_ids;  ///< [rows] global position of the sample in training order
  std::vector<std::int32_t> domains;     ///< [rows] index into Mixture::domain_names()

  std::int64_t valid_labels() const;
};

}  // namespace athanor::data
