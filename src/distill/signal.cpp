#include "distill/signal.hpp"

#include <fmt/ranges.h>

#include <array>
#include <functional>

#include <ATen/ATen.h>

#include "base/error.hpp"

namespace athanor::distill {
namespace {

using TokensOf = std::function<at::Tensor(const at::Tensor&)>;

struct Mapped {
  const TokensOf& tokens_of;
  using Payload = decltype(TeacherSignal::payload);

  Payload operator()(const NoSignal& none) const { return none; }
  Payload operator()(const FullSignal& full) const { return FullSignal{tokens_of(full.logits_Nv)}; }
  Payload operator()(const HiddenSignal& hidden) const {
    return HiddenSignal{tokens_of(hidden.h_ND), hidden.head_vD};
  }
  Payload operator()(const TopKSignal& topk) const {
    return TopKSignal{tokens_of(topk.ids_NK), tokens_of(topk.logits_NK), tokens_of(topk.lse_1_N),
                      tokens_of(topk.lse_NJ), tokens_of(topk.log_tail_NJ)};
  }
  Payload operator()(const SampledSignal& sampled) const {
    return SampledSignal{tokens_of(sampled.ids_NJM), tokens_of(sampled.counts_NJM),
                         tokens_of(sampled.entropy_NJ)};
  }
};

struct TokenCount {
  std::int64_t operator()(const NoSignal&) const { return 0; }
  std::int64_t operator()(const FullSignal& full) const { return full.logits_Nv.size(0); }
  std::int64_t operator()(const HiddenSignal& hidden) const { return hidden.h_ND.size(0); }
  std::int64_t operator()(const TopKSignal& topk) const { return topk.ids_NK.size(0); }
  std::int64_t operator()(const SampledSignal& sampled) const { return sampled.ids_NJM.size(0); }
};

}  // namespace

std::int64_t TeacherSignal::num_tokens() const {
  return std::visit(TokenCount(), payload);
}

TeacherSignal TeacherSignal::narrow(std::int64_t first, std::int64_t count) const {
  const TokensOf tokens_of = [&](const at::Tensor& tensor) { return tensor.narrow(0, first, count); };
  return {temperatures, std::visit(Mapped{tokens_of}, payload)};
}

TeacherSignal TeacherSignal::select(const at::Tensor& tokens) const {
  const TokensOf tokens_of = [&](const at::Tensor& tensor) { return tensor.index_select(0, tokens); };
  return {temperatures, std::visit(Mapped{tokens_of}, payload)};
}

std::int64_t temperature_index(const std::vector<double>& temperatures, double temperature) {
  for (std::size_t i = 0; i < temperatures.size(); ++i) {
    if (temperatures[i] == temperature) {
      return static_cast<std::int64_t>(i);
    }
  }
  throw base::ConfigError(
      "the teacher's signal does not serve temperature {} (it was made for {}, and other temperatures cannot "
      "be "
      "recovered from it) choose one of these or record the signal again",
      temperature, fmt::join(temperatures, ", "));
}

}  // namespace athanor::distill
