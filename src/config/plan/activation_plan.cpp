#include "config/plan/activation_plan.hpp"

#include <algorithm>
#include <vector>

#include "config/plan/element_bytes.hpp"
#include "nn/token_batch.hpp"
#include "nn/vocab_parallel.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::config {
namespace {

// Bytes that are live, by what for, and how it was when they were most.
class Meter {
 public:
  std::int64_t take(Activation kind, std::int64_t bytes) {
    live_[static_cast<std::size_t>(kind)] += bytes;
    total_ += bytes;
    if (total_ > plan_.peak) {
      plan_.peak = total_;
      plan_.at_peak = live_;
    }
    return bytes;
  }
  void free(Activation kind, std::int64_t bytes) {
    live_[static_cast<std::size_t>(kind)] -= bytes;
    total_ -= bytes;
  }
  /// There for a moment, together.
  void touch(Activation kind, std::int64_t bytes) { free(kind, take(kind, bytes)); }
  const ActivationPlan& plan() const { return plan_; }

 private:
  std::array<std::int64_t, num_activation_kinds> live_{};
  std::int64_t total_ = 0;
  ActivationPlan plan_;
};

// What a layer keeps for its backward pass.
struct Kept {
  std::int64_t residual = 0;
  std::int64_t middle = 0;  // between attention and feed-forward, and its norm
  std::int64_t attention = 0;
  std::int64_t router = 0;
  std::int64_t rows = 0;
  std::int64_t results = 0;
  std::int64_t experts = 0;
  std::int64_t ffn = 0;
};

class Walk {
 public:
  explicit Walk(const ActivationInput& input)
      : in_(input),
        model_(input.model),
        element_(compute_bytes(input.compute)),
        accumulator_(accumulation_bytes(input.compute)),
        tp_(input.dims.tp),
        all_(input.sequences * nn::padded_sequence(input.seq, tp_)),
        own_(all_ / tp_),
        heads_(model_.heads / tp_),
        kv_heads_(std::max<std::int64_t>(model_.kv_heads / tp_, 1)),
        row_(model_.hidden * element_),
        dispatch_row_(wire_row_bytes(model_.hidden, model_.moe.wire.dispatch, input.compute)),
        combine_row_(wire_row_bytes(model_.hidden, model_.moe.wire.combine, input.compute)) {}

  ActivationPlan run() {
    const bool trains = in_.pass == PassKind::training;
    // Tokens, labels and positions; cosines and sines; rows to look up.
    meter_.take(Activation::residual, 4 * 8 * all_ + all_ * model_.resolved_head_dim() * accumulator_);
    meter_.take(Activation::residual, all_ * row_);
    scatter(Activation::residual);
    const std::vector<model::LayerSpec> layers = model::resolve_layers(model_);
    const bool keeps = trains && !model_.recompute;
    std::vector<Kept> kept;
    for (const model::LayerSpec& layer : layers) {
      kept.push_back(forward(layer, keeps));
      if (!trains) {
        meter_.free(Activation::residual, own_ * row_);  // its input
      }
    }
    head(trains);
    for (std::size_t i = layers.size(); trains && i-- > 0;) {
      if (model_.recompute) {
        kept[i] = forward(layers[i], true);
        meter_.free(Activation::residual, own_ * row_);  // its output, once more
      }
      backward(layers[i], kept[i]);
      meter_.free(Activation::residual, own_ * row_);  // its input
    }
    return meter_.plan();
  }

 private:
  bool is_fp8(nn::ActivationClass wanted) const {
    return model_.storage.of(wanted).has_value() && in_.pass == PassKind::training;
  }
  // Of `tokens` rows of `width` kept for backward: bytes in the compute type, or in codes and scales.
  std::int64_t kept_bytes(nn::ActivationClass wanted, std::int64_t tokens, std::int64_t width) const {
    return tokens * (is_fp8(wanted) ? width + 4 * fp8_blocks(width) : width * element_);
  }
  // Every tp rank's positions: [own] -> [all]. Bytes of the result, which is taken.
  std::int64_t gather(Activation kind) {
    if (tp_ == 1) {
      return 0;
    }
    meter_.take(kind, all_ * row_);
    if (in_.sequences > 1) {  // from rank order to the order of positions
      meter_.touch(kind, all_ * row_);
    }
    return all_ * row_;
  }
  // [all], which is live, -> [own].
  void scatter(Activation kind) {
    if (tp_ == 1) {
      return;
    }
    const std::int64_t copy = in_.sequences > 1 ? all_ * row_ : 0;
    meter_.take(kind, copy + own_ * row_);
    meter_.free(kind, copy + all_ * row_);
  }

  // The input is live and stays so; the output is taken.
  Kept forward(const model::LayerSpec& layer, bool keeps) {
    Kept kept;
    const std::int64_t statistics = own_ * accumulator_;
    kept.residual = meter_.take(Activation::residual, statistics + own_ * row_);
    attention_forward(kept, keeps);
    kept.middle = meter_.take(Activation::residual, statistics + own_ * row_);
    meter_.take(Activation::residual, own_ * row_);  // the feed-forward's input
    if (layer.ffn == model::FfnKind::dense) {
      dense_forward(kept, model_.ffn, keeps);
    } else {
      sparse_forward(kept, keeps);
    }
    meter_.take(Activation::residual, own_ * row_);
    meter_.free(Activation::residual, 2 * own_ * row_);  // results of attention and feed-forward
    // With tp the gathered copies are kept instead of the norms' results.
    const bool keeps_input = layer.ffn == model::FfnKind::sparse || tp_ == 1;
    if (!keeps) {
      meter_.free(Activation::residual, kept.residual + kept.middle + own_ * row_);
      return {};
    }
    if (tp_ > 1) {
      meter_.free(Activation::residual, own_ * row_);
      kept.residual -= own_ * row_;
    }
    shrink(Activation::residual, nn::ActivationClass::norm, own_ * row_, kept.middle);
    if (keeps_input) {
      kept.middle += own_ * row_;
      shrink(Activation::residual,
             layer.ffn == model::FfnKind::dense ? nn::ActivationClass::ffn : nn::ActivationClass::experts,
             own_ * row_, kept.middle);
    } else {
      meter_.free(Activation::residual, own_ * row_);
    }
    if (tp_ == 1) {
      shrink(Activation::residual, nn::ActivationClass::attention, own_ * row_, kept.residual);
    }
    return kept;
  }

  // `bytes` of `kept` are replaced by codes where their class is kept in FP8.
  void shrink(Activation kind, nn::ActivationClass wanted, std::int64_t bytes, std::int64_t& kept) {
    if (is_fp8(wanted)) {
      const std::int64_t codes = bytes / element_ + bytes / element_ / 32;
      meter_.take(kind, codes);
      meter_.free(kind, bytes);
      kept += codes - bytes;
    }
  }

  void attention_forward(Kept& kept, bool keeps) {
    const std::int64_t head = model_.resolved_head_dim();
    const std::int64_t gathered = gather(Activation::attention);
    // q, k and v of the projections; q and k turned; the result; statistics of norms and softmax.
    const std::int64_t width = (3 * heads_ + 3 * kv_heads_) * head;
    const std::int64_t numbers = all_ * (2 * heads_ + kv_heads_) * accumulator_;
    kept.attention = gathered + meter_.take(Activation::attention, all_ * width * element_ + numbers);
    if (!model_.qk_norm) {  // what is turned only is not kept
      meter_.free(Activation::attention, all_ * heads_ * head * element_);
      kept.attention -= all_ * heads_ * head * element_;
    }
    meter_.take(Activation::residual, all_ * row_);
    scatter(Activation::residual);
    if (!keeps) {
      meter_.free(Activation::attention, kept.attention);
      kept.attention = 0;
    } else {
      shrink(Activation::attention, nn::ActivationClass::attention, gathered + all_ * width * element_,
             kept.attention);
    }
  }

  // Leaves its result, [own], of kind residual.
  void dense_forward(Kept& kept, std::int64_t ffn, bool keeps) {
    const std::int64_t columns = parallel::block_of(ffn, tp_, 0).count;
    const std::int64_t gathered = gather(Activation::ffn);
    const std::int64_t inner = meter_.take(Activation::ffn, all_ * 3 * columns * element_);
    meter_.take(Activation::residual, all_ * row_);
    scatter(Activation::residual);
    if (!keeps) {
      meter_.free(Activation::ffn, gathered + inner);
      return;
    }
    kept.ffn += gathered + inner;
    shrink(Activation::ffn, nn::ActivationClass::ffn, gathered + inner, kept.ffn);
  }

  void sparse_forward(Kept& kept, bool keeps) {
    const moe::MoeOptions& moe = model_.moe;
    const std::int64_t wide = accumulator_ != element_ ? own_ * model_.hidden * accumulator_ : 0;
    const std::int64_t scores = own_ * moe.num_experts * accumulator_;
    meter_.touch(Activation::router, wide + 2 * scores);
    const std::int64_t choices = own_ * moe.top_k;
    const bool is_sigmoid = moe.score == moe::RouterScore::sigmoid;
    kept.router = scores * (is_sigmoid ? 2 + (moe.z_weight > 0 ? 1 : 0) : 1) + own_ * accumulator_ +
                  choices * (8 + 2 * accumulator_);
    kept.router += 8 * (choices + 2 * (choices - in_.rows.sent) + in_.rows.sent + 2 * in_.rows.received);
    meter_.take(Activation::router, kept.router);
    route_forward(kept, keeps);
    if (moe.shared_experts > 0) {
      dense_forward(kept, moe.shared_experts * moe.ffn, keeps);
      meter_.take(Activation::residual, own_ * row_);
      meter_.free(Activation::residual, 2 * own_ * row_);
    }
    if (!keeps) {
      meter_.free(Activation::router, kept.router);
      kept.router = 0;
    }
  }

  std::int64_t buffer_bytes() const { return (in_.rows.computed + in_.rows.sent) * row_; }
  bool is_packed(std::int64_t wire_row) const { return wire_row != row_ && in_.dims.ep > 1; }
  bool is_in_chunks() const { return model_.moe.dispatch_chunks > 1 && in_.dims.ep > 1; }

  // Rows out and back: on several chunks the wires of both directions are there while the experts compute.
  void route_forward(Kept& kept, bool keeps) {
    const moe::MoeOptions& moe = model_.moe;
    const RoutedRows& rows = in_.rows;
    meter_.take(Activation::dispatch, buffer_bytes());
    const std::int64_t out =
        rows.received * dispatch_row_ + (is_packed(dispatch_row_) ? (own_ + rows.sent) * dispatch_row_ : 0);
    const std::int64_t back =
        rows.received * row_ + (is_packed(combine_row_) ? (rows.received + rows.sent) * combine_row_ : 0);
    meter_.take(Activation::wire, out);
    if (!is_in_chunks()) {
      meter_.free(Activation::wire, out);
    }
    const std::int64_t inner = meter_.take(Activation::experts, rows.computed * 2 * moe.ffn * element_);
    meter_.take(Activation::dispatch, buffer_bytes());
    meter_.touch(Activation::experts, scratch_rows() * moe.ffn * element_);
    meter_.take(Activation::wire, back);
    meter_.take(Activation::residual, own_ * row_);
    meter_.free(Activation::wire, back + (is_in_chunks() ? out : 0));
    if (!keeps) {
      meter_.free(Activation::dispatch, 2 * buffer_bytes());
      meter_.free(Activation::experts, inner);
      return;
    }
    kept.rows = kept.results = buffer_bytes();
    kept.experts = inner;
    for (std::int64_t* part : {&kept.rows, &kept.results}) {
      shrink(Activation::dispatch, nn::ActivationClass::experts, *part, *part);
    }
    shrink(Activation::experts, nn::ActivationClass::experts, inner, kept.experts);
  }

  // Experts are computed in blocks of neighbours of at most 256 rows, or one by one.
  std::int64_t scratch_rows() const { return std::max<std::int64_t>(in_.rows.largest, 256); }

  void head(bool trains) {
    const std::int64_t columns = parallel::block_of(model_.vocab_size, tp_, 0).count;
    meter_.take(Activation::residual, own_ * (row_ + accumulator_));
    const std::int64_t gathered = gather(Activation::head);
    meter_.take(Activation::head, in_.signal_bytes);
    const std::int64_t chunk = std::min(nn::CrossEntropyOptions{}.chunk_tokens, all_);
    const std::int64_t logits =
        chunk * columns * element_ + chunk * in_.teacher_columns * accumulator_ + all_ * accumulator_;
    if (!trains) {
      meter_.touch(Activation::head, logits);
      meter_.free(Activation::head, gathered + in_.signal_bytes);
      return;
    }
    const std::int64_t product = element_ != accumulator_ ? columns * row_ : 0;
    const std::int64_t gradients = all_ * row_ + columns * model_.hidden * accumulator_;
    meter_.take(Activation::head, gradients);
    meter_.touch(Activation::head, logits + product);
    meter_.free(Activation::head, gathered + in_.signal_bytes);
    meter_.free(Activation::residual, own_ * (row_ + accumulator_));
    meter_.touch(Activation::head, all_ * in_.state_elements * accumulator_ / tp_);
    meter_.take(Activation::residual, all_ * row_);  // the gradient, scaled
    meter_.free(Activation::head, gradients);
    scatter(Activation::residual);
    // Through the final norm, whose input goes.
    meter_.take(Activation::residual, own_ * row_);
    meter_.free(Activation::residual, 2 * own_ * row_);
  }

  // The gradient of the output is live and becomes that of the input.
  void backward(const model::LayerSpec& layer, const Kept& kept) {
    if (layer.ffn == model::FfnKind::dense) {
      dense_backward(kept, model_.ffn);
    } else {
      sparse_backward(kept);
    }
    meter_.take(Activation::residual, own_ * row_);  // through the norm
    meter_.free(Activation::residual, own_ * row_ + kept.middle);
    meter_.touch(Activation::residual, own_ * row_);
    meter_.free(Activation::residual, own_ * row_);
    attention_backward(kept);
    meter_.touch(Activation::residual, 2 * own_ * row_);
    meter_.free(Activation::residual, own_ * row_ + kept.residual);
  }

  // A weight's gradient leaves its product in the compute type before it is added.
  void touch_product(std::int64_t elements) {
    if (element_ != accumulator_) {
      meter_.touch(Activation::residual, elements * element_);
    }
  }

  void attention_backward(const Kept& kept) {
    const std::int64_t head = model_.resolved_head_dim();
    const std::int64_t queries = all_ * heads_ * head * element_;
    const std::int64_t keys = all_ * kv_heads_ * head * element_;
    const std::int64_t gathered = gather(Activation::attention);
    meter_.take(Activation::attention, queries);
    meter_.free(Activation::attention, gathered);
    touch_product(heads_ * head * model_.hidden);
    if (is_fp8(nn::ActivationClass::attention)) {
      meter_.touch(Activation::attention, 2 * queries + 2 * keys);
    }
    meter_.take(Activation::attention, queries + 2 * keys);
    meter_.free(Activation::attention, queries);
    meter_.take(Activation::attention, queries + 4 * keys);  // before norms and turns
    meter_.free(Activation::attention, queries + 2 * keys);
    meter_.take(Activation::attention, 2 * all_ * row_);
    meter_.free(Activation::attention, queries + 4 * keys + 2 * all_ * row_ + kept.attention);
    meter_.take(Activation::residual, all_ * row_);
    scatter(Activation::residual);
  }

  // Leaves the gradient of its input, [own], of kind residual.
  void dense_backward(const Kept& kept, std::int64_t ffn) {
    const std::int64_t columns = parallel::block_of(ffn, tp_, 0).count;
    const std::int64_t gathered = gather(Activation::ffn);
    const std::int64_t inner = meter_.take(Activation::ffn, all_ * columns * element_);
    touch_product(columns * model_.hidden);
    if (is_fp8(nn::ActivationClass::ffn)) {
      meter_.touch(Activation::ffn, 2 * inner);
    }
    meter_.take(Activation::ffn, 2 * inner);
    meter_.free(Activation::ffn, inner + gathered);
    meter_.take(Activation::residual, all_ * row_);
    touch_product(2 * columns * model_.hidden);
    meter_.free(Activation::ffn, 2 * inner + kept.ffn);
    scatter(Activation::residual);
  }

  void sparse_backward(const Kept& kept) {
    const moe::MoeOptions& moe = model_.moe;
    const RoutedRows& rows = in_.rows;
    const std::int64_t out =
        rows.received * dispatch_row_ + (is_packed(dispatch_row_) ? rows.sent * dispatch_row_ : 0);
    const std::int64_t back = rows.received * row_;
    if (is_fp8(nn::ActivationClass::experts)) {
      meter_.take(Activation::dispatch, buffer_bytes());  // the results, restored
    }
    meter_.take(Activation::dispatch, buffer_bytes());
    meter_.take(Activation::wire, out);
    if (!is_in_chunks()) {
      meter_.free(Activation::wire, out);
    }
    meter_.free(Activation::dispatch,
                kept.results + (is_fp8(nn::ActivationClass::experts) ? buffer_bytes() : 0));
    meter_.take(Activation::dispatch, buffer_bytes());
    if (is_in_chunks()) {
      meter_.take(Activation::wire, back);
    }
    meter_.touch(Activation::experts, scratch_rows() * 4 * moe.ffn * element_);
    meter_.free(Activation::dispatch, buffer_bytes() + kept.rows);
    meter_.free(Activation::experts, kept.experts);
    if (!is_in_chunks()) {
      meter_.take(Activation::wire, back);
    }
    meter_.take(Activation::residual, own_ * row_);
    meter_.free(Activation::wire, back + (is_in_chunks() ? out : 0));
    meter_.free(Activation::dispatch, buffer_bytes());
    const std::int64_t wide = accumulator_ != element_ ? 2 * own_ * model_.hidden * accumulator_ : 0;
    meter_.touch(Activation::router, own_ * moe.num_experts * accumulator_ + wide + own_ * row_);
    meter_.free(Activation::router, kept.router);
    if (moe.shared_experts > 0) {
      dense_backward(kept, moe.shared_experts * moe.ffn);
      meter_.free(Activation::residual, own_ * row_);
    }
  }

  const ActivationInput& in_;
  const model::TransformerConfig& model_;
  std::int64_t element_;
  std::int64_t accumulator_;
  std::int64_t tp_;
  std::int64_t all_;  // tokens of the replica's micro-batch
  std::int64_t own_;  // this rank's part of them
  std::int64_t heads_;
  std::int64_t kv_heads_;
  std::int64_t row_;  // bytes of a token of width hidden
  std::int64_t dispatch_row_;
  std::int64_t combine_row_;
  Meter meter_;
};

}  // namespace

RoutedRows even_rows(const model::TransformerConfig& model, const parallel::ParallelDims& dims,
                     std::int64_t tokens) {
  if (model.moe.num_experts == 0) {
    return {};
  }
  const std::int64_t choices = tokens * model.moe.top_k;
  const std::int64_t sent = choices * (dims.ep - 1) / dims.ep;
  return {choices, (choices * dims.ep + model.moe.num_experts - 1) / model.moe.num_experts, sent, sent};
}

RoutedRows worst_rows(const model::TransformerConfig& model, const parallel::ParallelDims& dims,
                      std::int64_t tokens, std::int64_t seq) {
  if (model.moe.num_experts == 0) {
    return {};
  }
  const moe::MoeOptions& moe = model.moe;
  const std::int64_t experts = moe.num_experts / dims.ep;
  const std::int64_t here = std::min(moe.top_k, experts);  // choices of a token are of different experts
  const std::int64_t group = dims.ep * tokens;
  std::int64_t computed = group * here;
  std::int64_t largest = group;  // a token chooses an expert once
  if (moe.capacity_factor > 0) {
    const std::int64_t sequences = (group + seq - 1) / seq;
    const std::int64_t capacity = sequences * moe::sequence_capacity(moe, seq);
    computed = std::min(computed, experts * capacity);
    largest = std::min(largest, capacity);
  }
  const std::int64_t own = std::min(tokens * here, computed);
  return {computed, largest, tokens * moe.top_k - own, computed - own};
}

ActivationPlan plan_activations(const ActivationInput& input) {
  return Walk(input).run();
}

}  // namespace athanor::config
