// Batches of prompts to texts, with a key-value cache, distributed as training is.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "infer/generation_options.hpp"
#include "infer/sampler.hpp"
#include "model/transformer.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::infer {

/// One text to continue.
struct GenerationRequest {
  std::uint64_t id = 0;  ///< enters the random numbers: equal ids, prompts and seeds give equal texts
  /// Token ids. Empty: a new document, which starts after an end_of_document token.
  std::vector<std::int64_t> prompt;
};

/// Why a text ended.
enum class FinishReason { end_of_document, max_new_tokens, max_seq };
/// "end_of_document", "max_new_tokens", "max_seq".
std::string_view to_string(FinishReason reason);

/// The continuation of one request.
struct GenerationResult {
  std::uint64_t id = 0;
  std::vector<std::int64_t> tokens;  ///< generated ones, without the prompt and without end_of_document
  FinishReason reason = FinishReason::max_new_tokens;
  /// Sum of the model's own log-probabilities (before penalties, temperature and limits) of `tokens`, and of
  /// end_of_document where that was the reason.
  double log_probability = 0.0;
  /// Beam search: what the text was ranked by, sum of penalised log-probabilities / length^length_penalty.
  /// Else 0.
  double beam_score = 0.0;
};

/// Generates texts with one model.
class Generator {
 public:
  /// `model` and `grid` must outlive the generator. Throws ConfigError as GenerationOptions::validate.
  Generator(const model::Transformer& model, const parallel::ProcessGrid& grid,
            const GenerationOptions& options);

  /// Continues each request; results in the order of the requests, on every rank. Collective over the role:
  /// all ranks pass the same requests. Prompts of equal length are decoded together; such groups are divided
  /// over the replicas, and a replica that has run out takes part in the others' passes with zero rows.
  /// `balance` as in model::ForwardContext. Throws ConfigError for a prompt that is too long, empty without
  /// end_of_document, or has ids outside the vocabulary.
  std::vector<GenerationResult> generate(std::span<const GenerationRequest> requests,
                                         const moe::BalanceState* balance) const;

 private:
  struct ActiveBatch;

  std::vector<GenerationRequest> checked(std::span<const GenerationRequest> requests) const;
  ActiveBatch start(std::span<const GenerationRequest> requests, std::span<const std::size_t> members) const;
  void run_pass(ActiveBatch* batch, const moe::BalanceState* balance) const;

  const model::Transformer* model_ = nullptr;
  const parallel::ProcessGrid* grid_ = nullptr;
  GenerationOptions options_;
};

}  // namespace athanor::infer
