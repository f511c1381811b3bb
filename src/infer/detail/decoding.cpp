#include "infer/detail/decoding.hpp"

#include <limits>

#include "base/error.hpp"
#include "infer/detail/beam_search.hpp"
#include "infer/sampler.hpp"

namespace athanor::infer::detail {
namespace {

class SamplingDecoding final : public Decoding {
 public:
  SamplingDecoding(const GenerationRequest& request, const GenerationOptions& options,
                   const LengthLimit& limit)
      : sampler_(options.sampler),
        end_of_document_(options.end_of_document),
        min_new_tokens_(options.min_new_tokens),
        limit_(limit),
        history_(request.prompt) {
    result_.id = request.id;
  }

  std::vector<Continuation> advance(const at::Tensor& logits_RV) override {
    std::vector<double> logits_V = logits_row(logits_RV[0]);
    if (end_of_document_ >= 0 && static_cast<std::int64_t>(result_.tokens.size()) < min_new_tokens_) {
      logits_V[static_cast<std::size_t>(end_of_document_)] = -std::numeric_limits<double>::infinity();
    }
    const SampledToken next = sampler_.sample(logits_V, history_, result_.id, history_.size());
    result_.log_probability += next.log_probability;
    if (next.token == end_of_document_) {
      result_.reason = FinishReason::end_of_document;
      return {};
    }
    result_.tokens.push_back(next.token);
    history_.push_back(next.token);
    if (static_cast<std::int64_t>(result_.tokens.size()) == limit_.new_tokens) {
      result_.reason = limit_.reason;
      return {};
    }
    return {{0, next.token}};
  }

  GenerationResult result() const override { return result_; }

 private:
  Sampler sampler_;
  std::int64_t end_of_document_ = -1;
  std::int64_t min_new_tokens_ = 0;
  LengthLimit limit_;
  std::vector<std::int64_t> history_;  // prompt and generated tokens
  GenerationResult result_;
};

}  // namespace

LengthLimit length_limit(std::int64_t prompt_length, std::int64_t max_new_tokens, std::int64_t max_seq) {
  const std::int64_t room = max_seq - prompt_length;
  if (room < max_new_tokens) {
    return {room, FinishReason::max_seq};
  }
  return {max_new_tokens, FinishReason::max_new_tokens};
}

std::unique_ptr<Decoding> make_decoding(const GenerationRequest& request, const GenerationOptions& options,
                                        std::int64_t max_seq) {
  const LengthLimit limit =
      length_limit(static_cast<std::int64_t>(request.prompt.size()), options.max_new_tokens, max_seq);
  if (options.beams > 1) {
    return std::make_unique<BeamSearch>(request, options, limit);
  }
  return std::make_unique<SamplingDecoding>(request, options, limit);
}

}  // namespace athanor::infer::detail
