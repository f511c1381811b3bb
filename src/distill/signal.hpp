// What a student is told by its teacher about some tokens: the payloads of a signal as tensors.
//
// Legend: N tokens, v vocabulary entries of this tensor-parallel rank, V whole vocabulary, D the teacher's
// hidden width, K kept ids, M draws, J temperatures in use.
#pragma once

#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>

namespace athanor::distill {

/// How the teacher's distribution is described.
enum class PayloadKind { none, full, hidden, topk, sampled };
/// "none", "full", "hidden", "topk" or "sampled".
std::string_view name_of(PayloadKind kind);

/// No teacher: hard labels only.
struct NoSignal {};

/// The teacher's logits of this rank's slice of the vocabulary (the student's slice, by true id); -infinity
/// in padded columns, where the student's are -infinity too.
struct FullSignal {
  at::Tensor logits_Nv;  ///< any float type
};

/// The teacher's state after its final norm, and its head's rows of this rank's slice of the vocabulary;
/// logits are made chunk by chunk.
struct HiddenSignal {
  at::Tensor h_ND;     ///< any float type, the same on all tp ranks
  at::Tensor head_vD;  ///< of the same type
};

/// The K largest logits, not renormalised, and the mass of all others. The same on all tp ranks.
struct TopKSignal {
  at::Tensor ids_NK;  ///< int32, distinct in a row; -1: no entry (fewer than K ids exist)
  at::Tensor
      logits_NK;       ///< accumulation type, raw (before any temperature); -infinity where there is no entry
  at::Tensor lse_1_N;  ///< accumulation type: logsumexp of all raw logits
  at::Tensor lse_NJ;   ///< accumulation type: logsumexp of logits / T, for each temperature
  at::Tensor log_tail_NJ;  ///< accumulation type: log of the probability outside the K ids; -infinity: none
};

/// M independent draws with replacement from softmax(logits / T). The same on all tp ranks.
struct SampledSignal {
  at::Tensor ids_NJM;     ///< int32, distinct in a row, ascending; -1 behind the last
  at::Tensor counts_NJM;  ///< int32, how often each was drawn (their sum is M); 0 where the id is -1
  at::Tensor entropy_NJ;  ///< accumulation type: entropy of softmax(logits / T)
};

/// The payload for N tokens and the temperatures that it serves.
struct TeacherSignal {
  std::vector<double> temperatures = {1.0};
  std::variant<NoSignal, FullSignal, HiddenSignal, TopKSignal, SampledSignal> payload;

  PayloadKind kind() const { return static_cast<PayloadKind>(payload.index()); }
  /// N; 0 without a payload.
  std::int64_t num_tokens() const;
  /// The signal of tokens [first, first + count), sharing storage.
  TeacherSignal narrow(std::int64_t first, std::int64_t count) const;
  /// The signal of the tokens named by an int64 tensor, copied.
  TeacherSignal select(const at::Tensor& tokens) const;
};

/// Index of `temperature` in `temperatures`; throws ConfigError naming those that are there when it is not
/// one of them.
std::int64_t temperature_index(const std::vector<double>& temperatures, double temperature);

}  // namespace athanor::distill
