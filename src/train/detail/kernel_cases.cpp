#include "train/detail/kernel_cases.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>

#include "distill/distill_loss.hpp"
#include "kernels/activation.hpp"
#include "kernels/adamw.hpp"
#include "kernels/attention.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/fp8.hpp"
#include "kernels/gemm.hpp"
#include "kernels/grouped_gemm.hpp"
#include "kernels/norm.hpp"
#include "kernels/permute.hpp"
#include "kernels/rotary.hpp"

namespace athanor::train::detail {
namespace {

namespace fast = kernels::cpu;
namespace plain = kernels::reference;
using kernels::accumulation_t;

template <typename T>
using Array = std::shared_ptr<std::vector<T>>;

template <typename T>
Array<T> numbers(std::int64_t n) {
  std::mt19937 generator(17);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  auto array = std::make_shared<std::vector<T>>(static_cast<std::size_t>(n));
  std::generate(array->begin(), array->end(), [&] { return static_cast<T>(uniform(generator)); });
  return array;
}

/// 0 .. n-1 in random order, each divided by `divisor`.
Array<std::int64_t> shuffled(std::int64_t n, std::int64_t divisor) {
  auto array = std::make_shared<std::vector<std::int64_t>>(static_cast<std::size_t>(n));
  std::iota(array->begin(), array->end(), 0);
  std::shuffle(array->begin(), array->end(), std::mt19937(17));
  for (std::int64_t& value : *array) {
    value /= divisor;
  }
  return array;
}

template <typename T>
constexpr bool is_bf16 = std::is_same_v<T, c10::BFloat16>;

template <typename T>
std::string named(const char* name) {
  return std::string(name) + (is_bf16<T> ? ", bf16" : ", f32");
}

/// A case bound by memory: `elements` of T (f32 in the reference) and `fixed` other bytes.
template <typename T>
KernelCase memory_case(const char* name, double elements, double fixed, std::function<void()> run,
                       std::function<void()> reference) {
  return {named<T>(name),      false,
          is_bf16<T>,          elements * static_cast<double>(sizeof(T)) + fixed,
          std::move(run),      elements * 4.0 + fixed,
          std::move(reference)};
}

/// The sizes that the cases share.
struct Sizes {
  explicit Sizes(const BenchKernelsOptions& options)
      : tokens(options.tokens),
        hidden(options.model.hidden),
        vocab(options.model.vocab_size),
        seq(options.seq),
        heads(options.model.heads),
        kv_heads(options.model.kv_heads),
        head_dim(options.model.resolved_head_dim()),
        choices(options.model.moe.top_k),
        ffn(options.model.moe.ffn),
        experts(std::max<std::int64_t>(1, options.model.moe.num_experts / options.expert_ranks)),
        rows(tokens * choices),
        chunk(std::min<std::int64_t>(tokens, 512)) {}
  std::int64_t tokens, hidden, vocab, seq, heads, kv_heads, head_dim, choices, ffn, experts, rows, chunk;
};

template <typename T>
void add_rows_cases(const Sizes& s, std::vector<MakeCase>& cases) {
  const double moved = static_cast<double>(s.rows * s.hidden);
  const double summed = static_cast<double>(s.tokens * s.hidden);
  cases.push_back([=] {
    const auto source = shuffled(s.rows, s.choices);
    const auto x = numbers<T>(s.tokens * s.hidden), out = numbers<T>(s.rows * s.hidden);
    const auto x32 = numbers<float>(s.tokens * s.hidden), out32 = numbers<float>(s.rows * s.hidden);
    return memory_case<T>(
        "permute", moved + summed, 8.0 * static_cast<double>(s.rows),
        [=] { fast::permute_tokens(x->data(), source->data(), s.rows, s.hidden, out->data()); },
        [=] { plain::permute_tokens(x32->data(), source->data(), s.rows, s.hidden, out32->data()); });
  });
  cases.push_back([=] {
    const auto slot = shuffled(s.rows, 1);
    const auto gates = numbers<float>(s.rows);
    const auto x = numbers<T>(s.rows * s.hidden), y = numbers<T>(s.tokens * s.hidden);
    const auto x32 = numbers<float>(s.rows * s.hidden), y32 = numbers<float>(s.tokens * s.hidden);
    return memory_case<T>(
        "unpermute (weighted sum)", moved + summed, 12.0 * static_cast<double>(s.rows),
        [=] {
          fast::combine_rows(x->data(), slot->data(), gates->data(), s.tokens, s.choices, s.hidden,
                             y->data());
        },
        [=] {
          plain::combine_rows(x32->data(), slot->data(), gates->data(), s.tokens, s.choices, s.hidden,
                              y32->data());
        });
  });
  cases.push_back([=] {
    const auto slot = shuffled(s.rows, 1);
    const auto gates = numbers<float>(s.rows), dgates = numbers<float>(s.rows);
    const auto x = numbers<T>(s.rows * s.hidden), dx = numbers<T>(s.rows * s.hidden),
               dy = numbers<T>(s.tokens * s.hidden);
    const auto x32 = numbers<float>(s.rows * s.hidden), dx32 = numbers<float>(s.rows * s.hidden),
               dy32 = numbers<float>(s.tokens * s.hidden);
    return memory_case<T>(
        "unpermute, backward", 2.0 * moved + summed, 16.0 * static_cast<double>(s.rows),
        [=] {
          fast::combine_rows_backward(dy->data(), x->data(), slot->data(), gates->data(), s.tokens, s.choices,
                                      s.hidden, dx->data(), dgates->data());
        },
        [=] {
          plain::combine_rows_backward(dy32->data(), x32->data(), slot->data(), gates->data(), s.tokens,
                                       s.choices, s.hidden, dx32->data(), dgates->data());
        });
  });
}

template <typename T>
void add_fp8_cases(const Sizes& s, std::vector<MakeCase>& cases) {
  const kernels::Fp8Rows layout = kernels::Fp8Rows::apart(s.rows, s.hidden);
  const auto elements = static_cast<double>(s.rows * s.hidden);
  const double packed = elements + 4.0 * static_cast<double>(s.rows * kernels::fp8_blocks(s.hidden));
  constexpr base::Fp8Format format = base::Fp8Format::e4m3;
  const auto buffers = [=] {
    return std::pair(std::make_shared<std::vector<std::uint8_t>>(static_cast<std::size_t>(s.rows * s.hidden)),
                     numbers<float>(s.rows * kernels::fp8_blocks(s.hidden)));
  };
  cases.push_back([=] {
    const auto [codes, scales] = buffers();
    const auto x = numbers<T>(s.rows * s.hidden);
    const auto x32 = numbers<float>(s.rows * s.hidden);
    return memory_case<T>(
        "quantise to fp8", elements, packed,
        [=, codes = codes, scales = scales] {
          kernels::Fp8Counts counts;
          fast::quantize_fp8_blocks(x->data(), layout, format, codes->data(), scales->data(), counts);
        },
        [=, codes = codes, scales = scales] {
          kernels::Fp8Counts counts;
          plain::quantize_fp8_blocks(x32->data(), layout, format, codes->data(), scales->data(), counts);
        });
  });
  cases.push_back([=] {
    const auto [codes, scales] = buffers();
    const auto x = numbers<T>(s.rows * s.hidden);
    const auto x32 = numbers<float>(s.rows * s.hidden);
    return memory_case<T>(
        "dequantise from fp8", elements, packed,
        [=, codes = codes, scales = scales] {
          fast::dequantize_fp8_blocks(codes->data(), scales->data(), layout, format, x->data());
        },
        [=, codes = codes, scales = scales] {
          plain::dequantize_fp8_blocks(codes->data(), scales->data(), layout, format, x32->data());
        });
  });
}

template <typename T>
void add_norm_cases(const Sizes& s, std::vector<MakeCase>& cases) {
  const auto elements = static_cast<double>(s.tokens * s.hidden);
  const double fixed = 4.0 * static_cast<double>(s.tokens);
  cases.push_back([=] {
    const auto rstd = numbers<float>(s.tokens);
    const auto x = numbers<T>(s.tokens * s.hidden), y = numbers<T>(s.tokens * s.hidden),
               weight = numbers<T>(s.hidden);
    const auto x32 = numbers<float>(s.tokens * s.hidden), y32 = numbers<float>(s.tokens * s.hidden),
               weight32 = numbers<float>(s.hidden);
    return memory_case<T>(
        "RMSNorm, forward", 2.0 * elements, fixed,
        [=] {
          fast::rms_norm_forward(x->data(), weight->data(), s.tokens, s.hidden, 1e-6, y->data(),
                                 rstd->data());
        },
        [=] {
          plain::rms_norm_forward(x32->data(), weight32->data(), s.tokens, s.hidden, 1e-6, y32->data(),
                                  rstd->data());
        });
  });
  cases.push_back([=] {
    const auto rstd = numbers<float>(s.tokens), dweight = numbers<float>(s.hidden);
    const auto x = numbers<T>(s.tokens * s.hidden), dy = numbers<T>(s.tokens * s.hidden),
               dx = numbers<T>(s.tokens * s.hidden), weight = numbers<T>(s.hidden);
    const auto x32 = numbers<float>(s.tokens * s.hidden), dy32 = numbers<float>(s.tokens * s.hidden),
               dx32 = numbers<float>(s.tokens * s.hidden), weight32 = numbers<float>(s.hidden);
    return memory_case<T>(
        "RMSNorm, backward", 3.0 * elements, fixed,
        [=] {
          fast::rms_norm_backward(dy->data(), x->data(), weight->data(), rstd->data(), s.tokens, s.hidden,
                                  dx->data(), dweight->data());
        },
        [=] {
          plain::rms_norm_backward(dy32->data(), x32->data(), weight32->data(), rstd->data(), s.tokens,
                                   s.hidden, dx32->data(), dweight->data());
        });
  });
  cases.push_back([=] {
    const std::int64_t width = s.heads * s.head_dim;
    const auto cos = numbers<float>(s.tokens * s.head_dim / 2),
               sin = numbers<float>(s.tokens * s.head_dim / 2);
    const auto x = numbers<T>(s.tokens * width), y = numbers<T>(s.tokens * width);
    const auto x32 = numbers<float>(s.tokens * width), y32 = numbers<float>(s.tokens * width);
    const kernels::HeadsShape shape{s.tokens, s.heads, s.head_dim, width};
    constexpr auto forward = kernels::RotaryDirection::forward;
    return memory_case<T>(
        "rotary positions", 2.0 * static_cast<double>(s.tokens * width),
        4.0 * static_cast<double>(s.tokens * s.head_dim),
        [=] { fast::rotary(x->data(), cos->data(), sin->data(), shape, forward, y->data()); },
        [=] { plain::rotary(x32->data(), cos->data(), sin->data(), shape, forward, y32->data()); });
  });
}

template <typename T>
void add_swiglu_cases(const Sizes& s, std::vector<MakeCase>& cases) {
  const auto elements = static_cast<double>(s.rows * s.ffn);
  cases.push_back([=] {
    const auto x = numbers<T>(2 * s.rows * s.ffn), y = numbers<T>(s.rows * s.ffn);
    const auto x32 = numbers<float>(2 * s.rows * s.ffn), y32 = numbers<float>(s.rows * s.ffn);
    return memory_case<T>(
        "SwiGLU, forward", 3.0 * elements, 0.0,
        [=] { fast::swiglu_forward(x->data(), s.rows, s.ffn, y->data()); },
        [=] { plain::swiglu_forward(x32->data(), s.rows, s.ffn, y32->data()); });
  });
  cases.push_back([=] {
    const auto x = numbers<T>(2 * s.rows * s.ffn), dy = numbers<T>(s.rows * s.ffn),
               dx = numbers<T>(2 * s.rows * s.ffn);
    const auto x32 = numbers<float>(2 * s.rows * s.ffn), dy32 = numbers<float>(s.rows * s.ffn),
               dx32 = numbers<float>(2 * s.rows * s.ffn);
    return memory_case<T>(
        "SwiGLU, backward", 5.0 * elements, 0.0,
        [=] { fast::swiglu_backward(dy->data(), x->data(), s.rows, s.ffn, dx->data()); },
        [=] { plain::swiglu_backward(dy32->data(), x32->data(), s.rows, s.ffn, dx32->data()); });
  });
}

/// Statistics and gradient together, as the head uses them.
template <typename T>
void add_cross_entropy_case(const Sizes& s, std::vector<MakeCase>& cases) {
  cases.push_back([=] {
    const auto labels = shuffled(s.chunk, 1);
    const auto maximum = numbers<float>(s.chunk), inverse = numbers<float>(s.chunk);
    const auto statistics =
        std::make_shared<std::vector<kernels::SoftmaxStatistics<float>>>(static_cast<std::size_t>(s.chunk));
    const auto logits = numbers<T>(s.chunk * s.vocab);
    const auto logits32 = numbers<float>(s.chunk * s.vocab);
    return memory_case<T>(
        "softmax cross-entropy with gradient", 3.0 * static_cast<double>(s.chunk * s.vocab), 0.0,
        [=] {
          fast::softmax_statistics(logits->data(), labels->data(), s.chunk, s.vocab, statistics->data());
          fast::cross_entropy_backward(logits->data(), labels->data(), maximum->data(), inverse->data(),
                                       s.chunk, s.vocab, 1.0f);
        },
        [=] {
          plain::softmax_statistics(logits32->data(), labels->data(), s.chunk, s.vocab, statistics->data());
          plain::cross_entropy_backward(logits32->data(), labels->data(), maximum->data(), inverse->data(),
                                        s.chunk, s.vocab, 1.0f);
        });
  });
}

template <typename T>
void add_adamw_case(const Sizes& s, std::vector<MakeCase>& cases) {
  cases.push_back([=] {
    const std::int64_t n = s.experts * 2 * s.ffn * s.hidden;  // one layer's gate and up
    const auto master = numbers<float>(n), m = numbers<float>(n), v = numbers<float>(n),
               gradient = numbers<float>(n);
    const auto copy = numbers<T>(n);
    std::fill(v->begin(), v->end(), 1.0f);
    const kernels::AdamwScalars scalars{1e-6, 0.9, 0.999, 1e-8, 0.1, 0.5, 0.5, 1.0};
    T* const published = is_bf16<T> ? copy->data() : nullptr;
    return memory_case<T>(
        "AdamW", is_bf16<T> ? static_cast<double>(n) : 0.0, 28.0 * static_cast<double>(n),
        [=] {
          fast::adamw_update(master->data(), m->data(), v->data(), gradient->data(), n, scalars, published);
          static_cast<void>(copy);
        },
        [=] { plain::adamw_update(master->data(), m->data(), v->data(), gradient->data(), n, scalars); });
  });
}

template <typename T>
KernelCase product_case(const char* name, double operations, std::function<void()> run,
                        std::function<void()> reference) {
  return {named<T>(name), true, is_bf16<T>, operations, std::move(run), operations, std::move(reference)};
}

/// One layer's gate and up of all local experts, each with T k / E rows.
template <typename T>
void add_expert_cases(const Sizes& s, std::vector<MakeCase>& cases) {
  enum class Direction { forward, data_gradient, weight_gradient };
  const std::int64_t width = 2 * s.ffn;
  const double operations = 2.0 * static_cast<double>(s.rows * s.hidden * width);
  const auto add = [&](const char* name, Direction direction) {
    cases.push_back([=] {
      const auto type = is_bf16<T> ? at::kBFloat16 : at::kFloat;
      const std::int64_t each = s.rows / s.experts;
      const std::vector<std::int64_t> counts(static_cast<std::size_t>(s.experts), each);
      const at::Tensor x = at::randn({each * s.experts, s.hidden}).to(type);
      const at::Tensor w = at::randn({s.experts, width, s.hidden}).to(type);
      const at::Tensor y = at::randn({each * s.experts, width}).to(type);
      const at::Tensor dw = at::empty(w.sizes());
      const at::Tensor x32 = x.to(at::kFloat), w32 = w.to(at::kFloat), y32 = y.to(at::kFloat);
      // One expert's product a call: the plain one is slow.
      const kernels::Operand<float> x_1{x32.const_data_ptr<float>(), s.hidden, 1},
          y_1{y32.const_data_ptr<float>(), width, 1}, w_1{w32.const_data_ptr<float>(), s.hidden, 1};
      const auto transposed = [](const kernels::Operand<float>& operand) {
        return kernels::Operand<float>{operand.data, operand.column_stride, operand.row_stride};
      };
      KernelCase result = product_case<T>(
          name, operations,
          [=] {
            if (direction == Direction::forward) {
              kernels::grouped_linear(x, w, counts, y);
            } else if (direction == Direction::data_gradient) {
              kernels::grouped_linear_data_gradient(y, w, counts, x);
            } else {
              kernels::grouped_linear_weight_gradient(y, x, counts, kernels::WeightGradient::overwrite, dw);
            }
          },
          [=] {
            constexpr auto mode = kernels::GemmMode::overwrite;
            if (direction == Direction::forward) {
              plain::gemm(x_1, transposed(w_1), {each, width, s.hidden}, mode, y32.mutable_data_ptr<float>(),
                          width);
            } else if (direction == Direction::data_gradient) {
              plain::gemm(y_1, w_1, {each, s.hidden, width}, mode, x32.mutable_data_ptr<float>(), s.hidden);
            } else {
              plain::gemm(transposed(y_1), x_1, {width, s.hidden, each}, mode, w32.mutable_data_ptr<float>(),
                          s.hidden);
            }
          });
      result.reference_work = operations / static_cast<double>(s.experts);
      return result;
    });
  };
  add("expert products, forward", Direction::forward);
  add("expert products, data gradient", Direction::data_gradient);
  add("expert products, weight gradient", Direction::weight_gradient);
}

template <typename T>
void add_attention_case(const Sizes& s, std::vector<MakeCase>& cases) {
  cases.push_back([=] {
    const std::int64_t batch = std::max<std::int64_t>(1, s.tokens / s.seq);
    const std::int64_t width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
    const kernels::AttentionShape shape{batch, s.seq,    s.seq,    s.heads, s.kv_heads, s.head_dim,
                                        width, kv_width, kv_width, true,    nullptr,    nullptr};
    kernels::AttentionShape one = shape;  // the plain one is slow
    one.batch = 1;
    const auto q = numbers<T>(batch * s.seq * width), y = numbers<T>(batch * s.seq * width);
    const auto k = numbers<T>(batch * s.seq * kv_width), v = numbers<T>(batch * s.seq * kv_width);
    const auto q32 = numbers<float>(s.seq * width), y32 = numbers<float>(s.seq * width);
    const auto k32 = numbers<float>(s.seq * kv_width), v32 = numbers<float>(s.seq * kv_width);
    const auto lse = numbers<float>(batch * s.heads * s.seq);
    const double operations = 2.0 * static_cast<double>(batch * s.heads * s.seq * s.seq * s.head_dim);
    KernelCase result = product_case<T>(
        "attention, forward", operations,
        [=] { fast::attention_forward(q->data(), k->data(), v->data(), shape, y->data(), lse->data()); },
        [=] {
          plain::attention_forward(q32->data(), k32->data(), v32->data(), one, y32->data(), lse->data());
        });
    result.reference_work = operations / static_cast<double>(batch);
    return result;
  });
}

/// Values and gradients of `divergence` of two slices of logits, against the same formula in tensor passes.
using Divergence = distill::Divergence (*)(const at::Tensor&, const at::Tensor&, double,
                                           const parallel::Communicator&);
using TensorFormula = void (*)(const at::Tensor& log_q, const at::Tensor& log_p);

void forward_kl_passes(const at::Tensor& log_q, const at::Tensor& log_p) {
  const at::Tensor p = log_p.exp();
  static_cast<void>((p * (log_p - log_q)).sum(-1));
  static_cast<void>(log_q.exp() - p);
}

void reverse_kl_passes(const at::Tensor& log_q, const at::Tensor& log_p) {
  const at::Tensor q = log_q.exp();
  const at::Tensor slope = log_q - log_p;
  static_cast<void>(q * (slope - (q * slope).sum(-1, true)));
}

void jsd_passes(const at::Tensor& log_q, const at::Tensor& log_p) {
  const at::Tensor q = log_q.exp(), p = log_p.exp();
  const at::Tensor log_m = ((p + q) * 0.5).log();
  static_cast<void>((p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) * 0.5);
  const at::Tensor slope = (log_q - log_m) * 0.5;
  static_cast<void>(q * (slope - (q * slope).sum(-1, true)));
}

distill::Divergence even_jsd(const at::Tensor& student, const at::Tensor& teacher, double temperature,
                             const parallel::Communicator& tp) {
  return distill::jsd(student, teacher, temperature, 0.5, tp);
}

void add_divergence_case(const char* name, Divergence divergence, TensorFormula formula, const Sizes& s,
                         std::vector<MakeCase>& cases) {
  cases.push_back([=] {
    const at::Tensor student = at::randn({s.chunk, s.vocab}), teacher = at::randn({s.chunk, s.vocab});
    // Both read, and the gradient written.
    return memory_case<float>(
        name, 3.0 * static_cast<double>(student.numel()), 0.0,
        [=] { static_cast<void>(divergence(student, teacher, 2.0, parallel::Communicator())); },
        [=] { formula((student / 2.0).log_softmax(-1), (teacher / 2.0).log_softmax(-1)); });
  });
}

template <typename T>
void add_all(const Sizes& sizes, bool is_sparse, std::vector<MakeCase>& cases) {
  if (is_sparse) {
    add_expert_cases<T>(sizes, cases);
    add_rows_cases<T>(sizes, cases);
    add_fp8_cases<T>(sizes, cases);
    add_swiglu_cases<T>(sizes, cases);
    add_adamw_case<T>(sizes, cases);
  }
  add_norm_cases<T>(sizes, cases);
  add_attention_case<T>(sizes, cases);
  add_cross_entropy_case<T>(sizes, cases);
}

}  // namespace

std::vector<MakeCase> kernel_cases(const BenchKernelsOptions& options) {
  const Sizes sizes(options);
  std::vector<MakeCase> cases;
  add_all<float>(sizes, options.model.moe.num_experts > 0, cases);
  add_all<c10::BFloat16>(sizes, options.model.moe.num_experts > 0, cases);
  add_divergence_case("forward KL with gradient", distill::forward_kl, forward_kl_passes, sizes, cases);
  add_divergence_case("reverse KL with gradient", distill::reverse_kl, reverse_kl_passes, sizes, cases);
  add_divergence_case("JSD with gradient", even_jsd, jsd_passes, sizes, cases);
  return cases;
}

}  // namespace athanor::train::detail
