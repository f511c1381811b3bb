#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <optional>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "kernels/attention.hpp"
#include "nn/detail/attention_functions.hpp"
#include "nn/detail/function_context.hpp"

namespace athanor::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

/// On one thread: our kernel, 2 to 3 times as fast as ATen's, and in the accumulation type for 16-bit inputs.
struct AttentionKernel : Function<AttentionKernel> {
  static kernels::AttentionShape shape_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                          const at::Tensor& query_documents, const at::Tensor& key_documents,
                                          bool causal) {
    kernels::AttentionShape shape;
    shape.batch = q.size(0);
    shape.queries = q.size(1);
    shape.keys = k.size(1);
    shape.heads = q.size(2);
    shape.kv_heads = k.size(2);
    shape.head_dim = q.size(3);
    shape.q_token_stride = q.stride(1);
    shape.k_token_stride = k.stride(1);
    shape.v_token_stride = v.stride(1);
    shape.causal = causal;
    if (query_documents.defined()) {
      shape.query_documents = query_documents.const_data_ptr<std::int64_t>();
      shape.key_documents = key_documents.const_data_ptr<std::int64_t>();
    }
    return shape;
  }

  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q_BSHC, const at::Tensor& k_BLGC,
                            const at::Tensor& v_BLGC, const std::optional<at::Tensor>& query_documents,
                            const std::optional<at::Tensor>& key_documents, bool causal, const Keep& keep,
                            StoredActivation* kept_y) {
    const at::Tensor q = detail::with_dense_heads(q_BSHC);
    const at::Tensor k = detail::with_dense_heads(k_BLGC);
    const at::Tensor v = detail::with_dense_heads(v_BLGC);
    const at::Tensor query_ids = query_documents.value_or(at::Tensor());
    const at::Tensor key_ids = key_documents.value_or(at::Tensor());
    const kernels::AttentionShape shape = shape_of(q, k, v, query_ids, key_ids, causal);
    const at::Tensor y = at::empty(q.sizes(), q.options());
    const at::Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)},
                                     q.options().dtype(parallel::accumulation_type(q.scalar_type())));
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, q.scalar_type(), "attention", [&] {
      kernels::cpu::attention_forward(q.const_data_ptr<scalar_t>(), k.const_data_ptr<scalar_t>(),
                                      v.const_data_ptr<scalar_t>(), shape, y.data_ptr<scalar_t>(),
                                      lse.data_ptr<kernels::accumulation_t<scalar_t>>());
    });
    const std::array<StoredActivation, 4> kept = {store_activation(q, keep), store_activation(k, keep),
                                                  store_activation(v, keep), store_activation(y, keep)};
    ctx->save_for_backward({kept[0].data, kept[1].data, kept[2].data, kept[3].data, lse, query_ids, key_ids,
                            kept[0].scales, kept[1].scales, kept[2].scales, kept[3].scales});
    if (kept_y != nullptr) {
      *kept_y = kept[3];
    }
    ctx->saved_data["causal"] = causal;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const base::ScopedSpan span(base::SpanKind::compute, "attention core backward");
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& lse = saved[4];
    const auto restored = [&](std::size_t i) {
      return restore_activation({saved[i], saved[i + 7]}, grads[0].scalar_type());
    };
    const at::Tensor q = restored(0), k = restored(1), v = restored(2), y = restored(3);
    const kernels::AttentionShape shape =
        shape_of(q, k, v, saved[5], saved[6], ctx->saved_data["causal"].toBool());
    const at::Tensor dy = grads[0].contiguous();
    const at::Tensor dq = at::empty(q.sizes(), q.options());
    const at::Tensor dk = at::empty(k.sizes(), k.options());
    const at::Tensor dv = at::empty(v.sizes(), v.options());
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, q.scalar_type(), "attention_backward", [&] {
      kernels::cpu::attention_backward(
          dy.const_data_ptr<scalar_t>(), q.const_data_ptr<scalar_t>(), k.const_data_ptr<scalar_t>(),
          v.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(),
          lse.const_data_ptr<kernels::accumulation_t<scalar_t>>(), shape, dq.data_ptr<scalar_t>(),
          dk.data_ptr<scalar_t>(), dv.data_ptr<scalar_t>());
    });
    return {dq, dk, dv, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor detail::one_thread_attention(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC,
                                        const at::Tensor& v_BLGC, const AttentionMask& mask, const Keep& keep,
                                        StoredActivation* kept_y) {
  const auto dense = [](const at::Tensor& ids) {
    return ids.defined() ? std::optional<at::Tensor>(ids.contiguous()) : std::nullopt;
  };
  return AttentionKernel::apply(q_BSHC, k_BLGC, v_BLGC, dense(mask.query_documents_BS),
                                dense(mask.key_documents_BL), mask.causal, keep, kept_y);
}

at::Tensor attention_core(const at::Tensor& q_BSHC, const at::Tensor& k_BLGC, const at::Tensor& v_BLGC,
                          const AttentionMask& mask, const Keep& keep, StoredActivation* kept_y) {
  ATHANOR_CHECK(q_BSHC.size(2) % k_BLGC.size(2) == 0 && k_BLGC.sizes() == v_BLGC.sizes(),
                "attention of {} query heads over {} key/value heads", q_BSHC.size(2), k_BLGC.size(2));
  ATHANOR_CHECK(!mask.causal || q_BSHC.size(1) <= k_BLGC.size(1),
                "causal attention of {} queries over {} keys", q_BSHC.size(1), k_BLGC.size(1));
  ATHANOR_CHECK(mask.query_documents_BS.defined() == mask.key_documents_BL.defined(),
                "document ids of queries and keys must be given together");
  if (!q_BSHC.is_cpu()) {
    return detail::device_attention(q_BSHC, k_BLGC, v_BLGC, mask, keep_if_backward(keep));
  }
  if (at::get_num_threads() == 1 || q_BSHC.numel() == 0) {
    return detail::one_thread_attention(q_BSHC, k_BLGC, v_BLGC, mask, keep_if_backward(keep), kept_y);
  }
  return detail::threaded_attention(q_BSHC, k_BLGC, v_BLGC, mask, keep_if_backward(keep), kept_y);
}

}  // namespace athanor::nn
