// The implementations behind attention_core; contracts as there.
#pragma once

#include "nn/attention.hpp"

namespace athanor::nn::detail {

/// Our kernel: 2 to 3 times as fast as ATen's on one thread, and in the accumulation type for 16-bit inputs.
at::Tensor one_thread_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                                const AttentionMask& mask, const Keep& keep, StoredActivation* kept_y);

/// ATen's flash attention, which divides heads and query blocks among threads. Inputs must not be empty.
at::Tensor threaded_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                              const AttentionMask& mask, const Keep& keep, StoredActivation* kept_y);

/// On a GPU: ATen's choice among its fused kernels (flash, memory-efficient, plain), which keep what backward
/// needs themselves. Throws InternalError with `keep`.
at::Tensor device_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                            const AttentionMask& mask, const Keep& keep);

}  // namespace athanor::nn::detail
