#include "train/gemm_limit.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <memory>

#include <fmt/format.h>

#include "base/stopwatch.hpp"
#include "kernels/gemm.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

enum class Direction { forward, data_gradient, weight_gradient };

constexpr std::array<Direction, 3> directions = {Direction::forward, Direction::data_gradient,
                                                 Direction::weight_gradient};

std::string direction_name(Direction direction) {
  switch (direction) {
    case Direction::forward:
      return "forward";
    case Direction::data_gradient:
      return "data gradient";
    case Direction::weight_gradient:
      return "weight gradient";
  }
  return "";
}

// `groups` products y[m,n] = x[m,k] w[n,k]^T with weights of their own, `calls` times in a step.
struct ProductShape {
  std::string name;
  std::int64_t groups = 1;
  std::int64_t m = 0;
  std::int64_t k = 0;
  std::int64_t n = 0;
  std::int64_t calls = 1;
};

struct Implementation {
  std::string name;
  std::function<void()> run;
};

struct Timed {
  GemmProduct product;
  std::int64_t calls = 1;
  double flops = 0.0;
  std::function<void()> run;
};

double median_seconds(const std::function<void()>& run, int repeats) {
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const base::Stopwatch watch;
    run();
    seconds.push_back(watch.seconds());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// The operands of one direction as batched matrices [groups, rows, inner] x [groups, inner, columns].
struct Operands {
  at::Tensor a, b, out;
};

Operands make_operands(const ProductShape& shape, Direction direction, at::ScalarType type) {
  const auto random = [&](std::int64_t rows, std::int64_t columns) {
    return at::randn({shape.groups, rows, columns}, at::kFloat).to(type);
  };
  const at::Tensor x = random(shape.m, shape.k);
  const at::Tensor w = random(shape.n, shape.k);
  const at::Tensor y = random(shape.m, shape.n);
  switch (direction) {
    case Direction::forward:
      return {x, w.transpose(1, 2), at::empty_like(y)};
    case Direction::data_gradient:
      return {y, w, at::empty_like(x)};
    case Direction::weight_gradient:
      return {y.transpose(1, 2), x, at::empty_like(w)};
  }
  return {};
}

template <typename T>
kernels::Operand<T> operand_of(const at::Tensor& matrices, std::int64_t group) {
  return {matrices.const_data_ptr<T>() + group * matrices.stride(0), matrices.stride(1), matrices.stride(2)};
}

// Our own kernel, which the step uses where it is the fastest.
template <typename T>
void add_own(const ProductShape& shape, const Operands& operands, std::vector<Implementation>& all) {
  if (!kernels::cpu::has_gemm<T>()) {
    return;
  }
  all.push_back({"own", [groups = shape.groups, operands] {
                   const at::Tensor& out = operands.out;
                   const kernels::GemmShape size{out.size(1), out.size(2), operands.a.size(2)};
                   for (std::int64_t g = 0; g < groups; ++g) {
                     kernels::cpu::gemm(operand_of<T>(operands.a, g), operand_of<T>(operands.b, g), size,
                                        kernels::GemmMode::overwrite,
                                        out.mutable_data_ptr<T>() + g * out.stride(0), out.stride(1));
                   }
                 }});
}

std::vector<Implementation> implementations(const ProductShape& shape, Direction direction,
                                            at::ScalarType type) {
  const Operands operands = make_operands(shape, direction, type);
  std::vector<at::Tensor> a = operands.a.unbind(0);
  std::vector<at::Tensor> b = operands.b.unbind(0);
  std::vector<at::Tensor> out = operands.out.unbind(0);
  std::vector<Implementation> all;
  if (type == at::kFloat) {
    add_own<float>(shape, operands, all);
  } else if (type == at::kBFloat16) {
    add_own<c10::BFloat16>(shape, operands, all);
  }
  all.push_back({"mm", [a, b, out = std::move(out)]() mutable {
                   for (std::size_t i = 0; i < a.size(); ++i) {
                     at::mm_out(out[i], a[i], b[i]);
                   }
                 }});
  if (shape.groups > 1) {
    all.push_back({"bmm", [a_all = operands.a, b_all = operands.b, out_all = operands.out]() mutable {
                     at::bmm_out(out_all, a_all, b_all);
                   }});
    if (type != at::kDouble) {
      all.push_back({"grouped_mm", [operands] { (void)at::_grouped_mm(operands.a, operands.b); }});
    }
  }
  return all;
}

Timed choose_fastest(const ProductShape& shape, Direction direction, at::ScalarType type) {
  Timed timed;
  double best = 0.0;
  for (Implementation& implementation : implementations(shape, direction, type)) {
    try {
      implementation.run();
    } catch (const c10::Error&) {
      continue;  // a grouped call that does not take this shape or type is no candidate
    }
    const double seconds = median_seconds(implementation.run, 3);
    if (!timed.run || seconds < best) {
      best = seconds;
      timed.run = implementation.run;
      timed.product.implementation = implementation.name;
    }
  }
  timed.product.name = shape.name + ", " + direction_name(direction);
  timed.product.shape =
      fmt::format("{} x {} x {}, {} a step", shape.m, shape.k, shape.n, shape.groups * shape.calls);
  timed.calls = shape.calls;
  timed.flops = 2.0 * static_cast<double>(shape.groups * shape.calls * shape.m * shape.k * shape.n);
  return timed;
}

std::vector<ProductShape> product_shapes(const GemmLimitOptions& options, const parallel::ProcessGrid& grid) {
  const model::TransformerConfig& model = options.model;
  const std::int64_t tp = grid.dims().tp;
  const std::int64_t tokens = options.global_tokens / grid.dims().dp;  // of this replica
  const std::int64_t head_dim = model.resolved_head_dim();
  std::int64_t sparse = 0;
  for (const model::LayerSpec& layer : model::resolve_layers(model)) {
    sparse += layer.ffn == model::FfnKind::sparse ? 1 : 0;
  }
  std::vector<ProductShape> shapes;
  const auto add = [&](const char* name, std::int64_t groups, std::int64_t m, std::int64_t k, std::int64_t n,
                       std::int64_t calls) {
    if (groups > 0 && m > 0 && n > 0 && calls > 0) {
      shapes.push_back({name, groups, m, k, n, calls});
    }
  };
  add("q", 1, tokens, model.hidden, model.heads * head_dim / tp, model.layers);
  add("kv", 1, tokens, model.hidden, 2 * std::max<std::int64_t>(model.kv_heads / tp, 1) * head_dim,
      model.layers);
  add("o", 1, tokens, model.heads * head_dim / tp, model.hidden, model.layers);
  if (sparse > 0) {
    const moe::MoeOptions& moe = model.moe;
    const std::int64_t local_experts = moe.num_experts / grid.dims().ep;
    // Ranks of the expert-data group divide an expert's rows among them.
    const std::int64_t rows =
        options.global_tokens * moe.top_k / moe.num_experts / grid.size(parallel::Axis::expert_data);
    add("router", 1, tokens / tp, model.hidden, moe.num_experts, sparse);
    add("expert gate_up", local_experts, rows, model.hidden, 2 * moe.ffn, sparse);
    add("expert down", local_experts, rows, moe.ffn, model.hidden, sparse);
    add("shared gate_up", 1, tokens, model.hidden, 2 * moe.shared_experts * moe.ffn / tp, sparse);
    add("shared down", 1, tokens, moe.shared_experts * moe.ffn / tp, model.hidden,
        moe.shared_experts > 0 ? sparse : 0);
  }
  add("ffn gate_up", 1, tokens, model.hidden, 2 * model.ffn / tp, model.layers - sparse);
  add("ffn down", 1, tokens, model.ffn / tp, model.hidden, model.layers - sparse);
  add("head", 1, tokens, model.hidden, model.vocab_size / tp, 1);
  return shapes;
}

Timed attention_core(const GemmLimitOptions& options, const parallel::ProcessGrid& grid) {
  const std::int64_t sequences = options.global_tokens / options.seq / grid.dims().dp;
  const std::int64_t heads = options.model.heads / grid.dims().tp;
  const std::int64_t head_dim = options.model.resolved_head_dim();
  const auto random = [&] {
    return at::randn({sequences, heads, options.seq, head_dim}, at::kFloat).to(options.compute);
  };
  Timed timed;
  timed.run = [q = random(), k = random(), v = random()] {
    (void)at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, /*is_causal=*/true);
  };
  timed.calls = 3 * options.model.layers;
  timed.flops =
      4.0 * 0.5 * static_cast<double>(timed.calls * sequences * heads * options.seq * options.seq * head_dim);
  timed.product.name = "attention core";
  timed.product.shape = fmt::format("{} x {} heads, 3 forward times a layer", sequences, heads);
  timed.product.implementation = "sdpa";
  return timed;
}

}  // namespace

struct GemmLimit::State {
  const parallel::ProcessGrid* grid = nullptr;
  int repeats = 5;
  std::vector<Timed> timed;
  std::vector<GemmProduct> products;
};

GemmLimit::GemmLimit(const GemmLimitOptions& options, const parallel::ProcessGrid& grid)
    : state_(std::make_unique<State>()) {
  at::NoGradGuard no_grad;
  state_->grid = &grid;
  state_->repeats = options.repeats;
  for (const ProductShape& shape : product_shapes(options, grid)) {
    for (const Direction direction : directions) {
      grid.role().barrier();
      state_->timed.push_back(choose_fastest(shape, direction, options.compute));
    }
  }
  state_->timed.push_back(attention_core(options, grid));
}

GemmLimit::~GemmLimit() = default;

const std::vector<GemmProduct>& GemmLimit::products() const {
  return state_->products;
}

double GemmLimit::measure() {
  at::NoGradGuard no_grad;
  double sum = 0.0;
  state_->products.clear();
  state_->grid->role().barrier();
  for (const Timed& timed : state_->timed) {
    GemmProduct product = timed.product;
    product.seconds = median_seconds(timed.run, state_->repeats) * static_cast<double>(timed.calls);
    product.gflops = timed.flops / product.seconds / 1e9;
    sum += product.seconds;
    state_->products.push_back(product);
  }
  at::Tensor slowest = at::full({1}, sum, at::kDouble);
  parallel::all_reduce_(slowest, parallel::ReduceOp::max, state_->grid->role(), parallel::Traffic::other);
  return slowest.item<double>();
}

}  // namespace athanor::train
