#include "nn/attention.hpp"

#include <ATen/ATen.h>

#include "base/error.hpp"
#include "parallel/autograd/functions.hpp"

namespace athanor::nn {

namespace {

/// The key/value heads that a tensor-parallel rank holds.
parallel::Block kv_block(std::int64_t kv_heads, int tp_size, int tp_rank) {
  if (kv_heads >= tp_size) {
    return parallel::block_of(kv_heads, tp_size, tp_rank);
  }
  return {tp_rank * kv_heads / tp_size, 1};
}

void check_heads(const AttentionOptions& options, int tp) {
  if (options.heads <= 0 || options.kv_heads <= 0 || options.heads % options.kv_heads != 0) {
    throw base::ConfigError(
        "model.heads is {} and model.kv_heads {} (each key/value head serves an equal number of query heads) "
        "choose "
        "kv_heads that divides heads",
        options.heads, options.kv_heads);
  }
  if (options.heads % tp != 0) {
    throw base::ConfigError(
        "parallel.tp is {} and model.heads {} (heads are divided equally) choose tp that divides heads", tp,
        options.heads);
  }
  if (options.kv_heads % tp != 0 && tp % options.kv_heads != 0) {
    throw base::ConfigError(
        "parallel.tp is {} and model.kv_heads {} (key/value heads are divided or repeated equally) choose tp "
        "that "
        "divides kv_heads or is a multiple of it",
        tp, options.kv_heads);
  }
}

std::shared_ptr<parallel::Parameter> add_weight(parallel::ParameterMap& parameters, const std::string& name,
                                                parallel::ShardSpec shard, double std) {
  parallel::ParameterOptions options;
  options.name = name;
  options.shard = std::move(shard);
  options.init.std = std;
  return parameters.add(options);
}

std::shared_ptr<parallel::Parameter> add_norm(parallel::ParameterMap& parameters, const std::string& name,
                                              std::int64_t width) {
  parallel::ParameterOptions options;
  options.name = name;
  options.shard = parallel::ShardSpec::whole({width});
  options.decay = parallel::DecayGroup::no_decay;
  options.init = {parallel::InitialValue::Kind::constant, 0.0, 1.0};
  return parameters.add(options);
}

/// The core over everything the store has so far. Padding positions are neither stored nor computed.
at::Tensor attend_stored(const at::Tensor& q_BSHC, const at::Tensor& k_BSGC, const at::Tensor& v_BSGC,
                         const AttentionContext& context) {
  const std::int64_t real = context.batch->real_seq;
  ATHANOR_CHECK(!context.batch->documents_BS.defined(), "a key/value store knows no documents");
  const KeyValueStore::KeysValues all =
      context.store->append(context.layer, k_BSGC.narrow(1, 0, real), v_BSGC.narrow(1, 0, real));
  const at::Tensor y_BrHC =
      attention_core(q_BSHC.narrow(1, 0, real), all.k_BLGC, all.v_BLGC, AttentionMask{});
  return at::constant_pad_nd(y_BrHC, {0, 0, 0, 0, 0, q_BSHC.size(1) - real});
}

}  // namespace

CausalAttention::CausalAttention(const AttentionOptions& options, const std::string& prefix,
                                 parallel::ParameterMap& parameters, const parallel::ProcessGrid& grid)
    : options_(options), tp_(&grid.comm(parallel::Axis::tensor)) {
  check_heads(options, tp_->size());
  const std::int64_t width = options.head_dim;
  const parallel::Block q_heads = parallel::block_of(options.heads, tp_->size(), tp_->rank());
  const parallel::Block kv_heads = kv_block(options.kv_heads, tp_->size(), tp_->rank());
  const std::int64_t q_width = options.heads * width;
  q_ = add_weight(
      parameters, prefix + "q.weight",
      parallel::ShardSpec::slice({q_width, options.hidden}, 0, q_heads.first * width, q_heads.count * width),
      options.init_std);
  kv_ = add_weight(parameters, prefix + "kv.weight",
                   parallel::ShardSpec::slice({2, options.kv_heads * width, options.hidden}, 1,
                                              kv_heads.first * width, kv_heads.count * width),
                   options.init_std);
  o_ = add_weight(
      parameters, prefix + "o.weight",
      parallel::ShardSpec::slice({options.hidden, q_width}, 1, q_heads.first * width, q_heads.count * width),
      options.output_init_std);
  if (options.qk_norm) {
    q_norm_ = add_norm(parameters, prefix + "q_norm.weight", width);
    k_norm_ = add_norm(parameters, prefix + "k_norm.weight", width);
  }
}

at::Tensor CausalAttention::forward(const at::Tensor& x_BsD, const AttentionContext& context) const {
  const at::Tensor x_BSD = parallel::autograd::all_gather_dim(x_BsD, 1, *tp_, parallel::Traffic::other);
  const std::int64_t width = options_.head_dim;
  const std::int64_t batch = x_BSD.size(0);
  const std::int64_t seq = x_BSD.size(1);
  const Weight no_norm;
  const Keep keep = keep_if_backward(options_.keep);
  const StoredActivation kept_x = store_activation(x_BSD, keep);
  const at::Tensor q_BSHC =
      linear(x_BSD, read_weight(q_), kept_x).view({batch, seq, o_->shard.local_shape[1] / width, width});
  const std::vector<at::Tensor> keys_values =
      linear(x_BSD, read_weight(kv_), kept_x)
          .view({batch, seq, 2, kv_->shard.local_shape[1] / width, width})
          .unbind(2);
  const at::Tensor q = head_norm_rotary(q_BSHC, q_norm_ ? read_weight(q_norm_) : no_norm, options_.norm_eps,
                                        *context.rotary, keep);
  const at::Tensor k = head_norm_rotary(keys_values[0], k_norm_ ? read_weight(k_norm_) : no_norm,
                                        options_.norm_eps, *context.rotary, keep);
  if (context.capture != nullptr) {
    *context.capture = {q, k};
  }
  at::Tensor y_BSHC;
  StoredActivation kept_y;
  if (context.store != nullptr) {
    y_BSHC = attend_stored(q, k, keys_values[1], context);
  } else {
    AttentionMask mask;
    if (const at::Tensor& documents = context.batch->documents_BS; documents.defined()) {
      mask.query_documents_BS = mask.key_documents_BL = documents.to(q.device());
    }
    y_BSHC = attention_core(q, k, keys_values[1], mask, keep, &kept_y);
  }
  const std::vector<std::int64_t> rows = {batch, seq, o_->shard.local_shape[1]};
  const at::Tensor y_BSD =
      linear(y_BSHC.reshape(rows), read_weight(o_), kept_y.is_fp8() ? kept_y.view(rows) : StoredActivation{});
  return parallel::autograd::reduce_scatter_dim(y_BSD, 1, *tp_, parallel::Traffic::other);
}

}  // namespace athanor::nn
