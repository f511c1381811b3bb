// From the logits of one position to the next token: a pure function of logits, history, seed, request and
// position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/philox.hpp"
#include "infer/generation_options.hpp"

namespace athanor::infer {

/// A chosen token.
struct SampledToken {
  std::int64_t token = 0;
  double log_probability = 0.0;  ///< of the model's own distribution: log-softmax of the logits as given
};

/// One row of logits [V] (f32 or f64) as doubles. Not-a-number logits throw NumericError.
std::vector<double> logits_row(const at::Tensor& logits_V);
/// Log-softmax of a row.
std::vector<double> log_softmax(std::span<const double> logits_V);

/// Divides positive and multiplies negative values of the tokens in `history`, each token once (Keskar et al.
/// 2019).
void apply_repetition_penalty(std::span<double> logits_V, std::span<const std::int64_t> history,
                              double penalty);
/// Sets all but the k largest values to minus infinity; values equal to the k-th stay. k = 0 keeps all.
void keep_top_k(std::span<double> logits_V, std::int64_t k);
/// Sets to minus infinity each token whose more likely ones (ties: smaller ids) already have probability `p`
/// together.
void keep_top_p(std::span<double> logits_V, double p);

/// Chooses tokens. Its random numbers are Philox(seed, generation, request, position), so a choice depends
/// neither on the layout nor on what else is in the batch nor on earlier calls.
class Sampler {
 public:
  /// Throws ConfigError as SamplerOptions::validate.
  explicit Sampler(const SamplerOptions& options);
  const SamplerOptions& options() const { return options_; }

  /// The token for `position` (index in prompt + generated tokens, which are `history`) of request `request`.
  SampledToken sample(std::span<const double> logits_V, std::span<const std::int64_t> history,
                      std::uint64_t request, std::uint64_t position) const;

 private:
  SamplerOptions options_;
  base::PhiloxStream random_;
};

}  // namespace athanor::infer
