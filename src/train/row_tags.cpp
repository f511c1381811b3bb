#include "train/row_tags.hpp"

#include "base/hash.hpp"

namespace athanor::train {

distill::RowTags tags_of(const data::Batch& batch) {
  distill::RowTags tags;
  tags.first_sample_id = batch.sample_ids.empty() ? 0 : batch.sample_ids.front();
  for (std::int64_t row = 0; row < batch.rows; ++row) {
    tags.token_hashes.push_back(
        base::hash_bytes(batch.tokens.data() + row * batch.seq,
                         static_cast<std::size_t>(batch.seq) * sizeof(batch.tokens[0])));
  }
  return tags;
}

distill::RowTags tags_of(const std::vector<data::Batch>& batches) {
  distill::RowTags tags;
  for (const data::Batch& batch : batches) {
    const distill::RowTags part = tags_of(batch);
    if (tags.token_hashes.empty()) {
      tags.first_sample_id = part.first_sample_id;
    }
    tags.token_hashes.insert(tags.token_hashes.end(), part.token_hashes.begin(), part.token_hashes.end());
  }
  return tags;
}

}  // namespace athanor::train
