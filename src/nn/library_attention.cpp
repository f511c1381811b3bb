#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <optional>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "nn/detail/attention_functions.hpp"

namespace athanor::nn::detail {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// [B, L, G, C] -> [B, H, L, C], each key/value head repeated over its H/G query heads.
at::Tensor repeat_heads(const at::Tensor& x_BLGC, std::int64_t heads) {
  const std::int64_t repeats = heads / x_BLGC.size(2);
  if (repeats == 1) {
    return x_BLGC.transpose(1, 2);
  }
  const at::Tensor x_BGrLC = x_BLGC.transpose(1, 2).unsqueeze(2).expand(
      {x_BLGC.size(0), x_BLGC.size(2), repeats, x_BLGC.size(1), x_BLGC.size(3)});
  return x_BGrLC.reshape({x_BLGC.size(0), heads, x_BLGC.size(1), x_BLGC.size(3)});
}

/// The adjoint: sums the gradients of a head's copies. [B, H, L, C] -> [B, L, G, C].
at::Tensor sum_heads(const at::Tensor& grad_BHLC, std::int64_t kv_heads) {
  const std::int64_t repeats = grad_BHLC.size(1) / kv_heads;
  if (repeats == 1) {
    return grad_BHLC.transpose(1, 2);
  }
  return grad_BHLC.unflatten(1, {kv_heads, repeats}).sum(2).transpose(1, 2);
}

/// Bool [1 or B, 1, S, L] of the keys that each query may see; none when the kernel's own causal flag says it
/// all.
std::optional<at::Tensor> allowed_keys(const AttentionMask& mask, std::int64_t queries, std::int64_t keys,
                                       at::Device device) {
  at::Tensor allowed;  // [1 or B, S, L]
  const bool needs_causal = mask.causal && queries > 1;
  if (needs_causal && (queries != keys || mask.query_documents_BS.defined())) {
    const auto options = at::TensorOptions().dtype(at::kLong).device(device);
    const at::Tensor query_position = at::arange(queries, options).unsqueeze(1) + (keys - queries);
    allowed = at::arange(keys, options).unsqueeze(0).le(query_position).unsqueeze(0);
  }
  if (mask.query_documents_BS.defined()) {
    const at::Tensor same = mask.query_documents_BS.unsqueeze(2).eq(mask.key_documents_BL.unsqueeze(1));
    allowed = allowed.defined() ? allowed.logical_and(same) : same;
  }
  return allowed.defined() ? std::optional(allowed.unsqueeze(1)) : std::nullopt;
}

/// The mask as what is added to the scores: 0 and -infinity.
std::optional<at::Tensor> additive_mask(const AttentionMask& mask, std::int64_t queries, std::int64_t keys,
                                        at::ScalarType dtype) {
  const std::optional<at::Tensor> allowed = allowed_keys(mask, queries, keys, at::kCPU);
  if (!allowed) {
    return std::nullopt;
  }
  const at::Tensor zero = at::zeros({}, dtype);
  return at::where(*allowed, zero, at::full({}, -std::numeric_limits<double>::infinity(), dtype));
}

bool is_plainly_causal(const AttentionMask& mask, std::int64_t queries,
                       const std::optional<at::Tensor>& other) {
  return mask.causal && queries > 1 && !other.has_value();
}

/// What ATen's backward takes: of FP8 what attention_core was given is kept, without repeated heads.
struct FlashTensors {
  at::Tensor q, k, v, out;
};

/// On several threads: ATen's flash attention, which divides heads and query blocks among them.
struct ThreadedAttention : Function<ThreadedAttention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_BSHC, const at::Tensor& k_BLGC,
                            const at::Tensor& v_BLGC, const std::optional<at::Tensor>& mask, bool is_causal,
                            const Keep& keep, StoredActivation* kept_y) {
    const std::int64_t heads = q_BSHC.size(2);
    const at::Tensor q = q_BSHC.transpose(1, 2);
    const at::Tensor k = repeat_heads(k_BLGC, heads);
    const at::Tensor v = repeat_heads(v_BLGC, heads);
    const auto [out, logsumexp] =
        at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, mask);
    const at::Tensor mask_tensor = mask.value_or(at::Tensor());
    if (keep) {
      const StoredActivation kept[] = {store_activation(q_BSHC, keep), store_activation(k_BLGC, keep),
                                       store_activation(v_BLGC, keep),
                                       store_activation(out.transpose(1, 2), keep)};
      ctx->save_for_backward({kept[0].data, kept[1].data, kept[2].data, kept[3].data, logsumexp, mask_tensor,
                              kept[0].scales, kept[1].scales, kept[2].scales, kept[3].scales});
      if (kept_y != nullptr) {
        *kept_y = kept[3];
      }
    } else {
      ctx->save_for_backward({q, k, v, out, logsumexp, mask_tensor});
    }
    ctx->saved_data["is_causal"] = is_causal;
    ctx->saved_data["kv_heads"] = k_BLGC.size(2);
    return out.transpose(1, 2);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const base::ScopedSpan span(base::SpanKind::compute, "attention core backward");
    const variable_list saved = ctx->get_saved_variables();
    const std::optional<at::Tensor> mask = saved[5].defined() ? std::optional(saved[5]) : std::nullopt;
    const std::int64_t kv_heads = ctx->saved_data["kv_heads"].toInt();
    const FlashTensors tensors = restore(saved, grads[0]);
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        grads[0].transpose(1, 2), tensors.q, tensors.k, tensors.v, tensors.out, saved[4], 0.0,
        ctx->saved_data["is_causal"].toBool(), mask);
    return {dq.transpose(1, 2),
            sum_heads(dk, kv_heads),
            sum_heads(dv, kv_heads),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }

  static FlashTensors restore(const variable_list& saved, const at::Tensor& dy_BSHC) {
    if (saved.size() == 6) {
      return {saved[0], saved[1], saved[2], saved[3]};
    }
    const auto restored = [&](std::size_t i) {
      return restore_activation({saved[i], saved[i + 6]}, dy_BSHC.scalar_type());
    };
    const std::int64_t heads = dy_BSHC.size(2);
    return {restored(0).transpose(1, 2), repeat_heads(restored(1), heads), repeat_heads(restored(2), heads),
            restored(3).transpose(1, 2)};
  }
};

}  // namespace

at::Tensor threaded_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                              const AttentionMask& mask, const Keep& keep, StoredActivation* kept_y) {
  if (q_BSHC.scalar_type() == at::kHalf) {
    // fp16 products are 80 times slower than f32 ones on a CPU, so the core alone runs in f32.
    return threaded_attention(q_BSHC.to(at::kFloat), k_BLGC.to(at::kFloat), v_BLGC.to(at::kFloat), mask, keep,
                              kept_y)
        .to(at::kHalf);
  }
  const std::optional<at::Tensor> added =
      additive_mask(mask, q_BSHC.size(1), k_BLGC.size(1), q_BSHC.scalar_type());
  return ThreadedAttention::apply(q_BSHC, k_BLGC, v_BLGC, added,
                                  is_plainly_causal(mask, q_BSHC.size(1), added), keep, kept_y);
}

at::Tensor device_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                            const AttentionMask& mask, const Keep& keep) {
  ATHANOR_CHECK(!keep, "attention on {} keeps its operands itself: they cannot be kept in FP8",
                q_BSHC.device().str());
  const std::optional<at::Tensor> allowed =
      allowed_keys(mask, q_BSHC.size(1), k_BLGC.size(1), q_BSHC.device());
  return at::scaled_dot_product_attention(q_BSHC.transpose(1, 2), k_BLGC.transpose(1, 2),
                                          v_BLGC.transpose(1, 2), allowed, 0.0,
                                          is_plainly_causal(mask, q_BSHC.size(1), allowed), std::nullopt,
                                          /*enable_gqa=*/q_BSHC.size(2) != k_BLGC.size(2))
      .transpose(1, 2);
}

}  // namespace athanor::nn::detail
