// How one request grows token by token: sampling keeps one row of the batch, beam search several.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "infer/generator.hpp"

namespace athanor::infer::detail {

/// A row of the next pass: continue row `parent` (an index among the request's rows of this pass) with
/// `token`.
struct Continuation {
  std::int64_t parent = 0;
  std::int64_t token = 0;
};

/// Where a text must end.
struct LengthLimit {
  std::int64_t new_tokens = 0;
  FinishReason reason = FinishReason::max_new_tokens;
};
LengthLimit length_limit(std::int64_t prompt_length, std::int64_t max_new_tokens, std::int64_t max_seq);

/// State of one request. It starts with one row, the prompt.
class Decoding {
 public:
  virtual ~Decoding() = default;
  /// Takes the logits [R, V] that follow its R rows and says which rows go on; none: the text is finished.
  virtual std::vector<Continuation> advance(const at::Tensor& logits_RV) = 0;
  /// The text; once finished.
  virtual GenerationResult result() const = 0;
};

/// Sampling (or greedy choice) when options.beams is 1, beam search otherwise.
std::unique_ptr<Decoding> make_decoding(const GenerationRequest& request, const GenerationOptions& options,
                                        std::int64_t max_seq);

}  // namespace athanor::infer::detail
