// Ids of words that were encoded before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace athanor::data::detail {

/// A bounded map from words to ids, for several threads at once. Text repeats its words: looking one up takes
/// a fraction of the time of encoding it.
class WordCache {
 public:
  /// Appends the ids of `word` to `ids`; false when it is not known.
  bool append(std::string_view word, std::vector<std::int32_t>& ids) const;
  void insert(std::string_view word, const std::vector<std::int32_t>& word_ids);

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const { return std::hash<std::string_view>{}(word); }
  };
  // A part of the words under a lock of its own, so that threads seldom wait.
  struct Shard {
    mutable std::mutex mutex;
    std::unordered_map<std::string, std::vector<std::int32_t>, Hash, std::equal_to<>> words;
  };
  static constexpr std::size_t num_shards = 64;
  static constexpr std::size_t max_words_per_shard = 4096;

  static std::size_t shard_of(std::string_view word) { return (Hash{}(word) >> 20) % num_shards; }

  std::array<Shard, num_shards> shards_;
};

}  // namespace athanor::data::detail
