// What a model reads of one micro-batch.
//
// Legend: B sequences of this data-parallel rank, S positions of a sequence (padded to a multiple of tp), s =
// S/tp positions of this tensor-parallel rank, D hidden width, V vocabulary.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace athanor::nn {

/// Label of a position that is not trained on.
inline constexpr std::int64_t ignored_label = -100;

/// One micro-batch on the CPU, whole on every tensor-parallel rank of the replica; layers on a GPU copy what
/// they need. Every per-token decision (rotary angle, mask, capacity, dropout) uses positions, document ids
/// and sample ids from here, never the row index.
struct TokenBatch {
  at::Tensor tokens_BS;     ///< int64; padding positions hold 0
  at::Tensor labels_BS;     ///< int64; next tokens, ignored_label where not trained on (undefined: no labels)
  at::Tensor positions_BS;  ///< int64; position for rotary angles
  at::Tensor
      documents_BS;  ///< int64 document ids; attention stays inside equal ids. Undefined: attention crosses
  at::Tensor sample_ids_B;  ///< int64; global index of the sample in training order
  std::int64_t real_seq =
      0;  ///< positions [real_seq, S) are padding: neither routed, nor counted, nor labels
};

/// Positions of a sequence that this tensor-parallel rank holds under sequence parallelism.
struct SequenceSlice {
  std::int64_t first = 0;       ///< tp_rank * S/tp
  std::int64_t count = 0;       ///< S/tp
  std::int64_t real_count = 0;  ///< those of them below real_seq
  static SequenceSlice of(std::int64_t padded_seq, std::int64_t real_seq, int tp_rank, int tp_size);
};

/// S rounded up to a multiple of tp.
inline std::int64_t padded_sequence(std::int64_t seq, int tp) {
  return (seq + tp - 1) / tp * tp;
}

}  // namespace athanor::nn
