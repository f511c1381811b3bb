#include "infer/detail/beam_search.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.hpp"
#include "infer/sampler.hpp"

namespace athanor::infer::detail {

BeamSearch::BeamSearch(const GenerationRequest& request, const GenerationOptions& options,
                       const LengthLimit& limit)
    : options_(options), limit_(limit), id_(request.id), prompt_(request.prompt), running_(1) {}

std::vector<BeamSearch::Candidate> BeamSearch::best_candidates(const at::Tensor& logits_RV) const {
  const auto keep = static_cast<std::size_t>(2 * options_.beams);
  std::vector<Candidate> candidates;
  for (std::size_t row = 0; row < running_.size(); ++row) {
    const Beam& beam = running_[row];
    const std::vector<double> own = log_softmax(logits_row(logits_RV[static_cast<std::int64_t>(row)]));
    std::vector<double> scores = own;
    if (options_.end_of_document >= 0 &&
        static_cast<std::int64_t>(beam.tokens.size()) < options_.min_new_tokens) {
      scores[static_cast<std::size_t>(options_.end_of_document)] = -std::numeric_limits<double>::infinity();
    }
    std::vector<std::int64_t> history = prompt_;
    history.insert(history.end(), beam.tokens.begin(), beam.tokens.end());
    apply_repetition_penalty(scores, history, options_.sampler.repetition_penalty);
    keep_top_k(scores, options_.sampler.top_k);
    std::vector<std::size_t> order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const std::size_t count = std::min(keep, order.size());
    std::partial_sort(
        order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
        [&](std::size_t a, std::size_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    for (std::size_t i = 0; i < count && std::isfinite(scores[order[i]]); ++i) {
      candidates.push_back({static_cast<std::int64_t>(row), static_cast<std::int64_t>(order[i]),
                            beam.score_sum + scores[order[i]], beam.log_probability + own[order[i]]});
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score_sum > b.score_sum; });
  candidates.resize(std::min(keep, candidates.size()));
  return candidates;
}

BeamSearch::Beam BeamSearch::extended(const Candidate& candidate) const {
  Beam beam = running_[static_cast<std::size_t>(candidate.parent)];
  beam.tokens.push_back(candidate.token);
  beam.score_sum = candidate.score_sum;
  beam.log_probability = candidate.log_probability;
  return beam;
}

void BeamSearch::finish(Beam beam, FinishReason reason) {
  GenerationResult text;
  text.id = id_;
  text.reason = reason;
  text.log_probability = beam.log_probability;
  text.beam_score =
      beam.score_sum / std::pow(static_cast<double>(beam.tokens.size()), options_.length_penalty);
  if (reason == FinishReason::end_of_document) {
    beam.tokens.pop_back();
  }
  text.tokens = std::move(beam.tokens);
  const auto place = std::upper_bound(
      finished_.begin(), finished_.end(), text,
      [](const GenerationResult& a, const GenerationResult& b) { return a.beam_score > b.beam_score; });
  finished_.insert(place, std::move(text));
  if (static_cast<std::int64_t>(finished_.size()) > options_.beams) {
    finished_.pop_back();
  }
}

// Whether a running row could still enter the finished texts, judged at its present length.
bool BeamSearch::can_improve(std::int64_t length) const {
  if (running_.empty()) {
    return false;
  }
  if (static_cast<std::int64_t>(finished_.size()) < options_.beams) {
    return true;
  }
  const double best =
      running_.front().score_sum / std::pow(static_cast<double>(length), options_.length_penalty);
  return best > finished_.back().beam_score;
}

std::vector<Continuation> BeamSearch::advance(const at::Tensor& logits_RV) {
  ATHANOR_CHECK(logits_RV.size(0) == static_cast<std::int64_t>(running_.size()),
                "{} rows of logits for {} beams", logits_RV.size(0), running_.size());
  const std::vector<Candidate> candidates = best_candidates(logits_RV);
  const auto length = static_cast<std::int64_t>(running_.front().tokens.size()) + 1;
  const auto beams = static_cast<std::size_t>(options_.beams);
  std::vector<Continuation> continuations;
  std::vector<Beam> running;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const Candidate& candidate = candidates[i];
    const bool ends = candidate.token == options_.end_of_document;
    if (ends || length == limit_.new_tokens) {
      if (i < beams) {
        finish(extended(candidate), ends ? FinishReason::end_of_document : limit_.reason);
      }
    } else if (running.size() < beams) {
      running.push_back(extended(candidate));
      continuations.push_back({candidate.parent, candidate.token});
    }
  }
  running_ = std::move(running);
  return can_improve(length) ? continuations : std::vector<Continuation>{};
}

GenerationResult BeamSearch::result() const {
  ATHANOR_CHECK(!finished_.empty(), "beam search of request {} ended without a text", id_);
  return finished_.front();
}

}  // namespace athanor::infer::detail
