// The parts of codec.hpp and signal.hpp that need no tensors: names, legal values, bytes.
#include <array>

#include "base/error.hpp"
#include "distill/codec.hpp"

namespace athanor::distill {

std::string_view name_of(PayloadKind kind) {
  constexpr std::array<std::string_view, 5> names = {"none", "full", "hidden", "topk", "sampled"};
  return names[static_cast<std::size_t>(kind)];
}

void validate(const CodecOptions& options, std::int64_t vocab) {
  if (options.kind == PayloadKind::topk && (options.top_k < 1 || options.top_k > vocab)) {
    throw base::ConfigError(
        "distill.top_k = {} is out of range (it is a number of ids of a vocabulary of {}) give 1 to {}",
        options.top_k, vocab, vocab);
  }
  if (options.kind == PayloadKind::sampled && (options.samples < 1 || options.samples > 255)) {
    throw base::ConfigError("distill.samples = {} is out of range (counts travel as one byte) give 1 to 255",
                            options.samples);
  }
}

std::int64_t full_bytes_per_token(std::int64_t vocab, std::int64_t full_bytes) {
  return vocab * full_bytes;
}

std::int64_t topk_bytes_per_token(std::int64_t top_k, std::int64_t temperatures, std::int64_t full_bytes) {
  return top_k * (4 + full_bytes) + full_bytes * (1 + 2 * temperatures);
}

std::int64_t sampled_bytes_per_token(std::int64_t samples, std::int64_t temperatures,
                                     std::int64_t full_bytes) {
  return temperatures * (samples * 8 + full_bytes);
}

std::int64_t packed_sampled_bytes(std::int64_t tokens, std::int64_t distinct_ids, std::int64_t temperatures,
                                  std::int64_t full_bytes) {
  return tokens * temperatures * (1 + full_bytes) + distinct_ids * 5;
}

}  // namespace athanor::distill
