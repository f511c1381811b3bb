#include "infer/detail/gather_results.hpp"

#include <ATen/ATen.h>

#include <bit>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::infer::detail {
namespace {

// A record: index, id, reason, the two doubles' bits, number of tokens, tokens.
constexpr std::size_t record_header = 6;

std::vector<std::int64_t> packed(std::span<const IndexedResult> results) {
  std::vector<std::int64_t> words;
  for (const IndexedResult& entry : results) {
    const GenerationResult& result = entry.result;
    words.push_back(static_cast<std::int64_t>(entry.index));
    words.push_back(std::bit_cast<std::int64_t>(result.id));
    words.push_back(static_cast<std::int64_t>(result.reason));
    words.push_back(std::bit_cast<std::int64_t>(result.log_probability));
    words.push_back(std::bit_cast<std::int64_t>(result.beam_score));
    words.push_back(static_cast<std::int64_t>(result.tokens.size()));
    words.insert(words.end(), result.tokens.begin(), result.tokens.end());
  }
  return words;
}

// Reads one record at `word` into `results` and returns the number of words it took.
std::size_t unpack(const std::int64_t* word, std::vector<GenerationResult>& results) {
  GenerationResult& result = results.at(static_cast<std::size_t>(word[0]));
  result.id = std::bit_cast<std::uint64_t>(word[1]);
  result.reason = static_cast<FinishReason>(word[2]);
  result.log_probability = std::bit_cast<double>(word[3]);
  result.beam_score = std::bit_cast<double>(word[4]);
  const auto num_tokens = static_cast<std::size_t>(word[5]);
  result.tokens.assign(word + record_header, word + record_header + num_tokens);
  return record_header + num_tokens;
}

}  // namespace

std::vector<GenerationResult> gather_results(std::span<const IndexedResult> mine, std::size_t count,
                                             const parallel::Communicator& replicas) {
  const std::vector<std::int64_t> words = packed(mine);
  const at::Tensor sizes = parallel::all_gather(
      at::tensor({static_cast<std::int64_t>(words.size())}, at::kLong), replicas, parallel::Traffic::other);
  const std::vector<std::int64_t> rows(sizes.const_data_ptr<std::int64_t>(),
                                       sizes.const_data_ptr<std::int64_t>() + sizes.numel());
  const at::Tensor all =
      parallel::all_gather_v(at::tensor(words, at::kLong), rows, replicas, parallel::Traffic::other);
  std::vector<GenerationResult> results(count);
  const std::int64_t* data = all.const_data_ptr<std::int64_t>();
  std::size_t records = 0;
  for (std::size_t at = 0; at < static_cast<std::size_t>(all.numel()); ++records) {
    at += unpack(data + at, results);
  }
  ATHANOR_CHECK(records == count, "{} texts for {} requests", records, count);
  return results;
}

}  // namespace athanor::infer::detail
