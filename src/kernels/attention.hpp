// Softmax attention of grouped heads under a causal and document mask, forward and backward, on one thread.
//
// There is no CUDA twin: on a GPU attention is ATen's scaled_dot_product_attention (FlashAttention where it
// can).
//
// Legend: B sequences, S queries, L keys, H query heads, G key/value heads (H/G query heads share one), C
// head width.
#pragma once

#include <cstdint>

#include "kernels/element.hpp"

namespace athanor::kernels {

/// Sizes, strides and mask. Heads are dense, tokens of q, k, v lie `*_token_stride` elements apart, sequences
/// S (or L) tokens apart.
struct AttentionShape {
  std::int64_t batch = 0;
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t q_token_stride = 0;
  std::int64_t k_token_stride = 0;
  std::int64_t v_token_stride = 0;
  bool causal = true;  ///< query i sees keys [0, L - S + i]; needs L >= S
  const std::int64_t* query_documents =
      nullptr;  ///< [B, S]; with key_documents [B, L]: only equal ids see each other
  const std::int64_t* key_documents = nullptr;
};

// forward:  y [B, S, H, C] dense = softmax(q k^T / sqrt(C)) v; lse [B, H, S] the logarithm of the softmax's
// denominator. backward: dq [B, S, H, C], dk and dv [B, L, G, C], all dense, from dy (dense), y and lse.
// Nothing of size [S, L] is
//           kept between the two.
// All arithmetic is in the accumulation type. Every query must see a key.
namespace cpu {
template <typename T>
void attention_forward(const T* q, const T* k, const T* v, const AttentionShape& shape, T* y,
                       accumulation_t<T>* lse);
template <typename T>
void attention_backward(const T* dy, const T* q, const T* k, const T* v, const T* y,
                        const accumulation_t<T>* lse, const AttentionShape& shape, T* dq, T* dk, T* dv);
}  // namespace cpu

namespace reference {
template <typename T>
void attention_forward(const T* q, const T* k, const T* v, const AttentionShape& shape, T* y,
                       accumulation_t<T>* lse);
template <typename T>
void attention_backward(const T* dy, const T* q, const T* k, const T* v, const T* y,
                        const accumulation_t<T>* lse, const AttentionShape& shape, T* dq, T* dk, T* dv);
}  // namespace reference

}  // namespace athanor::kernels
