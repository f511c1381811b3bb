// Deterministic beam search over one request, with the rules of Hugging Face's generate() (early_stopping
// off).
#pragma once

#include <cstdint>
#include <vector>

#include "infer/detail/decoding.hpp"

namespace athanor::infer::detail {

/// Each step looks at the 2 * beams best continuations of all rows, by the sum of penalised
/// log-probabilities. Those among the first `beams` that end their text are finished, scored by sum /
/// length^length_penalty (the length counts end_of_document); the best `beams` of the others go on. The
/// search ends when `beams` texts are finished and the best row, at its present length, does not score above
/// the worst of them, or at the length limit. Ties: earlier row, then smaller token.
class BeamSearch final : public Decoding {
 public:
  BeamSearch(const GenerationRequest& request, const GenerationOptions& options, const LengthLimit& limit);
  std::vector<Continuation> advance(const at::Tensor& logits_RV) override;
  GenerationResult result() const override;

 private:
  struct Beam {
    std::vector<std::int64_t> tokens;  // generated ones
    double score_sum = 0.0;            // of penalised log-probabilities
    double log_probability = 0.0;      // of the model's own
  };
  struct Candidate {
    std::int64_t parent = 0;
    std::int64_t token = 0;
    double score_sum = 0.0;
    double log_probability = 0.0;
  };

  std::vector<Candidate> best_candidates(const at::Tensor& logits_RV) const;
  Beam extended(const Candidate& candidate) const;
  void finish(Beam beam, FinishReason reason);
  bool can_improve(std::int64_t length) const;

  GenerationOptions options_;
  LengthLimit limit_;
  std::uint64_t id_ = 0;
  std::vector<std::int64_t> prompt_;
  std::vector<Beam> running_;
  std::vector<GenerationResult> finished_;  // at most `beams`, best first
};

}  // namespace athanor::infer::detail
