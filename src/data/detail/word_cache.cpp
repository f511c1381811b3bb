#include "data/detail/word_cache.hpp"

namespace athanor::data::detail {

bool WordCache::append(std::string_view word, std::vector<std::int32_t>& ids) const {
  const Shard& shard = shards_[shard_of(word)];
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.words.find(word);
  if (found == shard.words.end()) {
    return false;
  }
  ids.insert(ids.end(), found->second.begin(), found->second.end());
  return true;
}

void WordCache::insert(std::string_view word, const std::vector<std::int32_t>& word_ids) {
  Shard& shard = shards_[shard_of(word)];
  const std::lock_guard lock(shard.mutex);
  // Frequent words come back at once; keeping track of age would cost more than it saves.
  if (shard.words.size() >= max_words_per_shard) {
    shard.words.clear();
  }
  shard.words.emplace(word, word_ids);
}

}  // namespace athanor::data::detail
