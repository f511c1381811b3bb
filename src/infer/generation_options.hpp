// `generate.*`: how the next token is chosen and when a text ends.
#pragma once

#include <cstdint>

namespace athanor::infer {

/// From logits to one token. The processors apply in this order, as in Hugging Face's generate(): repetition
/// penalty, temperature, top_k, top_p.
struct SamplerOptions {
  double temperature = 1.0;  ///< logits are divided by it; 0: the most likely token, no randomness
  std::int64_t top_k = 50;   ///< only the k most likely tokens (ties with the k-th stay); 0: all
  double top_p = 1.0;        ///< only the most likely tokens that together reach this probability; 1: all
  double repetition_penalty =
      1.2;  ///< positive logits of tokens seen before divided, negative ones multiplied; 1: off
  std::uint64_t seed = 0;

  /// Throws ConfigError naming the option.
  void validate() const;
};

/// `generate.*` except the prompt.
struct GenerationOptions {
  SamplerOptions sampler;
  std::int64_t max_new_tokens = 256;
  std::int64_t min_new_tokens = 0;  ///< the end-of-document token is not chosen before so many new tokens
  std::int64_t beams = 1;           ///< 1: sampling (or greedy); more: deterministic beam search
  double length_penalty = 0.8;      ///< beam search ranks by sum of log-probabilities / length^length_penalty
  std::int64_t end_of_document = -1;  ///< token that ends a text; -1: none
  std::int64_t max_batch = 32;        ///< requests of a replica that are decoded together

  /// Throws ConfigError naming the option: values out of range, and settings that beam search has no use for.
  void validate() const;
};

}  // namespace athanor::infer
