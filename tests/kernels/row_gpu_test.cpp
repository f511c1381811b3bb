// Row kernels on a GPU against the same bodies run on the host.
#include "kernels/activation.hpp"
#include "kernels/bodies/activation.hpp"
#include "kernels/bodies/columns.hpp"
#include "kernels/bodies/cross_entropy.hpp"
#include "kernels/bodies/permute.hpp"
#include "kernels/bodies/rotary.hpp"
#include "kernels/permute.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

using tests::DeviceArray;
using tests::expect_same;
using tests::expect_twin;
using tests::random_values;

template <typename T>
class RowGpu : public tests::GpuKernels {};
TYPED_TEST_SUITE(RowGpu, tests::ElementTypes);

TYPED_TEST(RowGpu, PermuteAndAddRows) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t destinations = 11;
  for (const std::int64_t rows : {0, 1, 300}) {
    for (const std::int64_t width : {0, 1, 3, 16, 257, 1024}) {
      const auto x = random_values<T>(destinations * width, 1), y = random_values<T>(rows * width, 2);
      const auto source = tests::example_rows(rows, destinations);
      std::vector<std::int64_t> from(source);
      std::replace(from.begin(), from.end(), std::int64_t{-1}, std::int64_t{0});
      const auto row = tests::example_rows(rows, destinations);
      std::vector<T> out(y.size());
      std::vector<A> sum(static_cast<std::size_t>(destinations * width), A(0.5));
      const auto device_x = this->put(x), device_y = this->put(y), device_out = this->put(out);
      const auto device_from = this->put(from), device_row = this->put(row);
      const auto device_sum = this->put(sum);
      cuda::permute_tokens(device_x.data(), device_from.data(), rows, width, device_out.data(),
                           this->stream());
      cuda::add_rows(device_y.data(), device_row.data(), rows, width, device_sum.data(), this->stream());
      cpu::permute_tokens(x.data(), from.data(), rows, width, out.data());
      cpu::add_rows(y.data(), row.data(), rows, width, sum.data());
      expect_same(this->get(device_out), out, "permute_tokens");
      expect_same(this->get(device_sum), sum, "add_rows");
    }
  }
}

TYPED_TEST(RowGpu, CombineRows) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  constexpr std::int64_t choices = 4;
  for (const std::int64_t tokens : {0, 1, 77}) {
    for (const std::int64_t width : {0, 1, 130, 1025}) {
      for (const bool has_gates : {true, false}) {
        const auto slot = tests::example_slots(tokens, choices);
        const auto x = random_values<T>(tokens * choices * width, 1),
                   dy = random_values<T>(tokens * width, 2);
        const auto gates = random_values<A>(tokens * choices, 3);
        std::vector<T> y(dy.size()), dx(x.size());
        std::vector<A> dgates(gates.size());
        const auto device_slot = this->put(slot);
        const auto device_x = this->put(x), device_dy = this->put(dy), device_y = this->put(y),
                   device_dx = this->put(dx);
        const auto device_gates = this->put(gates), device_dgates = this->put(dgates);
        const A* device_g = has_gates ? device_gates.data() : nullptr;
        const A* g = has_gates ? gates.data() : nullptr;
        cuda::combine_rows(device_x.data(), device_slot.data(), device_g, tokens, choices, width,
                           device_y.data(), this->stream());
        cuda::combine_rows_backward(device_dy.data(), device_x.data(), device_slot.data(), device_g, tokens,
                                    choices, width, device_dx.data(), device_dgates.data(), this->stream());
        bodies::run_rows(bodies::CombineRow<T>{x.data(), slot.data(), g, choices, width, y.data()}, tokens);
        bodies::run_rows(bodies::CombineRowBackward<T>{dy.data(), x.data(), slot.data(), g, choices, width,
                                                       dx.data(), dgates.data()},
                         tokens * choices);
        expect_same(this->get(device_y), y, "y");
        expect_same(this->get(device_dx), dx, "dx");
        expect_same(this->get(device_dgates), dgates, "dgates");
        cuda::combine_rows_backward<T>(device_dy.data(), nullptr, device_slot.data(), device_g, tokens,
                                       choices, width, device_dx.data(), nullptr, this->stream());
        expect_same(this->get(device_dx), dx, "dx without dgates");
      }
    }
  }
}

TYPED_TEST(RowGpu, CrossEntropy) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t rows : {0, 1, 13}) {
    for (const std::int64_t vocab : {0, 1, 255, 257, 5000}) {
      const auto labels = tests::example_labels(rows, vocab);
      auto logits = random_values<T>(rows * vocab, 1, 3.0);
      if (logits.size() > 300) {
        logits[300] = static_cast<T>(-std::numeric_limits<float>::infinity());  // padding
        logits.back() = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
      }
      std::vector<SoftmaxStatistics<A>> statistics(static_cast<std::size_t>(rows));
      const auto device_logits = this->put(logits);
      const auto device_labels = this->put(labels);
      const auto device_statistics = this->put(statistics);
      cuda::softmax_statistics(device_logits.data(), device_labels.data(), rows, vocab,
                               device_statistics.data(), this->stream());
      bodies::run_rows(
          bodies::SoftmaxStatisticsRow<T>{logits.data(), labels.data(), vocab, statistics.data()}, rows);
      std::vector<A> maximum, inverse, sums, device_sums;
      const auto from_device = this->get(device_statistics);
      for (std::size_t r = 0; r < statistics.size(); ++r) {
        EXPECT_TRUE(tests::same_number(from_device[r].maximum, statistics[r].maximum));
        EXPECT_TRUE(tests::same_number(from_device[r].target, statistics[r].target));
        if (!std::isnan(statistics[r].sum_exp)) {
          sums.push_back(statistics[r].sum_exp);
          device_sums.push_back(from_device[r].sum_exp);
        } else {
          EXPECT_TRUE(std::isnan(from_device[r].sum_exp));
        }
        maximum.push_back(statistics[r].maximum);
        inverse.push_back(r == 4 ? A(0) : A(1) / statistics[r].sum_exp);
      }
      expect_twin(device_sums, sums, "sum_exp");
      if (!logits.empty()) {
        logits.back() = T(0);
        inverse.back() = A(0.125);
      }
      const auto device_clean = this->put(logits);
      const auto device_maximum = this->put(maximum), device_inverse = this->put(inverse);
      cuda::cross_entropy_backward(device_clean.data(), device_labels.data(), device_maximum.data(),
                                   device_inverse.data(), rows, vocab, A(0.5), this->stream());
      bodies::run_rows(bodies::CrossEntropyBackwardRow<T>{logits.data(), labels.data(), maximum.data(),
                                                          inverse.data(), vocab, A(0.5)},
                       rows);
      expect_twin(this->get(device_clean), logits, "gradient");
    }
  }
}

TYPED_TEST(RowGpu, RmsNorm) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t rows : {0, 1, 65, 300}) {
    for (const std::int64_t width : {1, 33, 257, 1030}) {
      const auto x = random_values<T>(rows * width, 1), dy = random_values<T>(rows * width, 2);
      const auto weight = random_values<T>(width, 3);
      std::vector<T> y(x.size()), dx(x.size());
      std::vector<A> rstd(static_cast<std::size_t>(rows)), dweight(static_cast<std::size_t>(width), A(1));
      std::vector<A> partial(static_cast<std::size_t>(norm_partials * width));
      const auto device_x = this->put(x), device_dy = this->put(dy), device_weight = this->put(weight);
      const auto device_y = this->put(y), device_dx = this->put(dx);
      const auto device_rstd = this->put(rstd), device_dweight = this->put(dweight);
      const DeviceArray<A> device_partial(partial.size());
      cuda::rms_norm_forward(device_x.data(), device_weight.data(), rows, width, 1e-6, device_y.data(),
                             device_rstd.data(), this->stream());
      cuda::rms_norm_backward(device_dy.data(), device_x.data(), device_weight.data(), device_rstd.data(),
                              rows, width, device_dx.data(), device_dweight.data(), device_partial.data(),
                              this->stream());
      bodies::run_rows(bodies::RmsNormRow<T>{x.data(), weight.data(), width, A(1e-6), y.data(), rstd.data()},
                       rows);
      bodies::run_rows(
          bodies::RmsNormBackwardRow<T>{dy.data(), x.data(), weight.data(), rstd.data(), width, dx.data()},
          rows);
      bodies::run_columns(bodies::RmsNormWeightColumn<T>{dy.data(), x.data(), rstd.data(), width}, rows,
                          width, partial.data(), dweight.data());
      expect_same(this->get(device_rstd), rstd, "rstd");
      expect_same(this->get(device_y), y, "y");
      expect_same(this->get(device_dx), dx, "dx");
      expect_same(this->get(device_dweight), dweight, "dweight");
      cuda::rms_norm_backward<T>(device_dy.data(), device_x.data(), device_weight.data(), device_rstd.data(),
                                 rows, width, device_dx.data(), nullptr, nullptr, this->stream());
      expect_same(this->get(device_dx), dx, "dx alone");
    }
  }
}

TYPED_TEST(RowGpu, Swiglu) {
  using T = TypeParam;
  for (const std::int64_t rows : {0, 1, 9}) {
    for (const std::int64_t ffn : {0, 1, 128, 300}) {
      const auto gate_up = random_values<T>(rows * 2 * ffn, 1, 2.0), dy = random_values<T>(rows * ffn, 2);
      std::vector<T> y(dy.size()), dgate_up(gate_up.size());
      const auto device_gate_up = this->put(gate_up), device_dy = this->put(dy), device_y = this->put(y),
                 device_dgate_up = this->put(dgate_up);
      cuda::swiglu_forward(device_gate_up.data(), rows, ffn, device_y.data(), this->stream());
      cuda::swiglu_backward(device_dy.data(), device_gate_up.data(), rows, ffn, device_dgate_up.data(),
                            this->stream());
      bodies::run_rows(bodies::SwigluRow<T>{gate_up.data(), ffn, y.data()}, rows);
      bodies::run_rows(bodies::SwigluBackwardRow<T>{dy.data(), gate_up.data(), ffn, dgate_up.data()}, rows);
      expect_twin(this->get(device_y), y, "y");
      expect_twin(this->get(device_dgate_up), dgate_up, "dgate_up");
    }
  }
}

TYPED_TEST(RowGpu, RotaryAndHeadNorm) {
  using T = TypeParam;
  using A = accumulation_t<T>;
  for (const std::int64_t tokens : {0, 1, 77}) {
    const HeadsShape shape = tests::example_heads(tokens);
    const std::int64_t heads = shape.tokens * shape.heads;
    const auto x = random_values<T>(tokens * shape.token_stride, 1);
    const auto dy = random_values<T>(heads * shape.head_dim, 2), weight = random_values<T>(shape.head_dim, 3);
    const auto cos = random_values<A>(tokens * shape.head_dim / 2, 4);
    const auto sin = random_values<A>(tokens * shape.head_dim / 2, 5);
    const auto device_x = this->put(x), device_dy = this->put(dy), device_weight = this->put(weight);
    const auto device_cos = this->put(cos), device_sin = this->put(sin);
    std::vector<T> y(dy.size()), dx(x.size());
    const auto device_y = this->put(y), device_dx = this->put(dx);
    for (const RotaryDirection direction : {RotaryDirection::forward, RotaryDirection::inverse}) {
      cuda::rotary(device_x.data(), device_cos.data(), device_sin.data(), shape, direction, device_y.data(),
                   this->stream());
      bodies::run_rows(bodies::RotaryHead<T>{x.data(), cos.data(), sin.data(), shape,
                                             A(direction == RotaryDirection::forward ? 1 : -1), y.data()},
                       heads);
      expect_same(this->get(device_y), y, "rotary");
    }
    std::vector<A> rstd(static_cast<std::size_t>(heads)), dweight(weight.size(), A(1));
    std::vector<A> partial(static_cast<std::size_t>(norm_partials * shape.head_dim));
    const auto device_rstd = this->put(rstd), device_dweight = this->put(dweight),
               device_partial = this->put(partial);
    cuda::head_norm_rotary_forward(device_x.data(), device_weight.data(), device_cos.data(),
                                   device_sin.data(), shape, 1e-6, device_y.data(), device_rstd.data(),
                                   this->stream());
    cuda::head_norm_rotary_backward(device_dy.data(), device_x.data(), device_weight.data(),
                                    device_cos.data(), device_sin.data(), device_rstd.data(), shape,
                                    device_dx.data(), device_dweight.data(), device_partial.data(),
                                    this->stream());
    bodies::run_rows(bodies::HeadNormRotary<T>{x.data(), weight.data(), cos.data(), sin.data(), shape,
                                               A(1e-6), y.data(), rstd.data()},
                     heads);
    bodies::run_rows(bodies::HeadNormRotaryBackward<T>{dy.data(), x.data(), weight.data(), cos.data(),
                                                       sin.data(), rstd.data(), shape, dx.data()},
                     heads);
    bodies::run_columns(
        bodies::HeadNormWeightColumn<T>{dy.data(), x.data(), cos.data(), sin.data(), rstd.data(), shape},
        heads, shape.head_dim, partial.data(), dweight.data());
    expect_same(this->get(device_rstd), rstd, "rstd");
    expect_same(this->get(device_y), y, "y");
    expect_same(this->get(device_dx), dx, "dx");
    expect_same(this->get(device_dweight), dweight, "dweight");
  }
}

}  // namespace
}  // namespace athanor::kernels
