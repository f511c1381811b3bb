#include "infer/generation_options.hpp"

#include <cmath>

#include "base/error.hpp"

namespace athanor::infer {

void SamplerOptions::validate() const {
  if (!(temperature >= 0.0) || !std::isfinite(temperature)) {
    throw base::ConfigError(
        "generate.temperature is {} (logits are divided by it) give 0 for greedy or a positive number",
        temperature);
  }
  if (top_k < 0) {
    throw base::ConfigError("generate.top_k is {} (it counts tokens) give 0 for all or a positive number",
                            top_k);
  }
  if (!(top_p > 0.0 && top_p <= 1.0)) {
    throw base::ConfigError("generate.top_p is {} (it is a probability) give a number above 0 and at most 1",
                            top_p);
  }
  if (!(repetition_penalty > 0.0) || !std::isfinite(repetition_penalty)) {
    throw base::ConfigError(
        "generate.repetition_penalty is {} (logits are divided by it) give a positive number, 1 for off",
        repetition_penalty);
  }
}

void GenerationOptions::validate() const {
  sampler.validate();
  if (max_new_tokens < 1) {
    throw base::ConfigError("generate.max_new_tokens is {} (nothing would be generated) give at least 1",
                            max_new_tokens);
  }
  if (min_new_tokens < 0 || min_new_tokens > max_new_tokens) {
    throw base::ConfigError(
        "generate.min_new_tokens is {} (generate.max_new_tokens is {}) give at least 0 and at most that",
        min_new_tokens, max_new_tokens);
  }
  if (beams < 1) {
    throw base::ConfigError(
        "generate.beams is {} (a text needs one) give 1 for sampling, more for beam search", beams);
  }
  if (!std::isfinite(length_penalty)) {
    throw base::ConfigError(
        "generate.length_penalty is {} (scores are divided by length to this power) give a number",
        length_penalty);
  }
  if (max_batch < 1) {
    throw base::ConfigError(
        "the generation batch is {} (at least one request is decoded at a time) give at least 1", max_batch);
  }
  const bool shaped = sampler.temperature != 0.0 && sampler.temperature != 1.0;
  if (beams > 1 && (shaped || sampler.top_p < 1.0)) {
    throw base::ConfigError(
        "generate.beams is {} with generate.temperature={} and generate.top_p={} (beam search draws nothing, "
        "so both "
        "would be without effect) give temperature 0 or 1 and top_p 1, or beams 1",
        beams, sampler.temperature, sampler.top_p);
  }
}

}  // namespace athanor::infer
