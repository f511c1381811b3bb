// Number formats and repeatability of the sparse layer on one rank.
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "moe_fixture.hpp"
#include "support/finite_difference.hpp"

namespace athanor::tests {
namespace {

using moe::MoeOptions;

constexpr std::int64_t hidden = 10;

MoeOptions base_options() {
  MoeOptions options;
  options.num_experts = 8;
  options.top_k = 3;
  options.ffn = 6;
  options.balance_weight = 0.5;
  return options;
}

TEST(MoePrecision, RepeatsBitForBit) {
  const parallel::ProcessGrid grid;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    MoeOptions options = base_options();
    options.z_weight = 0.1;
    LayerUnderTest test(options, hidden, grid, dtype);
    const nn::TokenBatch batch = make_batch(0, 4, 16, 16);
    moe::MoeContext context = make_context(batch, 4, 16);
    context.balance_frequency_E = uneven_frequency(options);
    const at::Tensor values = random_tensor({4, 16, hidden}, 3, dtype);
    std::vector<at::Tensor> previous;
    for (int repeat = 0; repeat < 3; ++repeat) {
      test.reset_gradients();
      const at::Tensor x = values.clone().requires_grad_();
      const moe::MoeOutput output = test.layer->forward(x, context);
      (output.y_BsD.to(at::kDouble).square().sum() + output.aux).backward();
      std::vector<at::Tensor> now = {output.y_BsD.detach(), x.grad()};
      for (const auto& parameter : test.parameters.all()) {
        now.push_back(parameter->grad.buffer().clone());
      }
      for (std::size_t i = 0; i < previous.size(); ++i) {
        EXPECT_TRUE(now[i].equal(previous[i]))
            << c10::toString(dtype) << " tensor " << i << ", repeat " << repeat;
      }
      previous = now;
    }
  }
}

// The lower formats follow f64 within their rounding, with one and the same routing.
TEST(MoePrecision, LowerPrecisionsFollow) {
  const parallel::ProcessGrid grid;
  const MoeOptions options = base_options();
  LayerUnderTest exact(options, hidden, grid);
  const nn::TokenBatch batch = make_batch(0, 2, 6, 6);
  moe::MoeContext context = make_context(batch, 2, 6);
  const at::Tensor ids = (at::arange(36, at::kLong) * 5).remainder(8).view({12, 3}).contiguous();
  context.forced_ids_TK = &ids;
  const at::Tensor values = random_tensor({2, 6, hidden}, 3);
  const auto run = [&](const LayerUnderTest& test, at::ScalarType dtype) {
    const at::Tensor x = values.to(dtype).clone().requires_grad_();
    const at::Tensor y = test.layer->forward(x, context).y_BsD;
    y.to(at::kDouble).square().sum().backward();
    return std::vector<at::Tensor>{y.detach(), x.grad(), test.grad("moe.router.weight"),
                                   test.grad("moe.experts.down")};
  };
  const std::vector<at::Tensor> expected = run(exact, at::kDouble);
  for (const auto& [dtype, tolerance] :
       {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 0.05}, {at::kHalf, 0.01}}) {
    LayerUnderTest test(options, hidden, grid, dtype);
    const std::vector<at::Tensor> actual = run(test, dtype);
    EXPECT_EQ(actual[0].scalar_type(), dtype);
    EXPECT_EQ(actual[2].scalar_type(), at::kFloat);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      expect_close(actual[i], expected[i], tolerance,
                   std::string(c10::toString(dtype)) + " tensor " + std::to_string(i));
    }
  }
}

// A frozen layer passes the gradient of x on and computes none of its own; without accumulators autograd gets
// them.
TEST(MoeWeights, FrozenAndWithoutAccumulators) {
  const parallel::ProcessGrid grid;
  LayerUnderTest test(base_options(), hidden, grid);
  const nn::TokenBatch batch = make_batch(0, 2, 6, 6);
  const moe::MoeContext context = make_context(batch, 2, 6);
  const at::Tensor values = random_tensor({2, 6, hidden}, 3);
  const auto dx = [&](const LayerUnderTest& layer) {
    const at::Tensor x = values.clone().requires_grad_();
    layer.layer->forward(x, context).y_BsD.square().sum().backward();
    return x.grad();
  };
  const at::Tensor expected = dx(test);

  LayerUnderTest frozen(base_options(), hidden, grid);
  for (const auto& parameter : frozen.parameters.all()) {
    parameter->trainable = false;
  }
  EXPECT_TRUE(dx(frozen).equal(expected));
  for (const auto& parameter : frozen.parameters.all()) {
    EXPECT_TRUE(parameter->grad.is_empty()) << parameter->name;
  }

  LayerUnderTest plain(base_options(), hidden, grid);
  for (const auto& parameter : plain.parameters.all()) {
    parameter->grad = parallel::GradAccumulator();
    parameter->value.requires_grad_();
  }
  EXPECT_TRUE(dx(plain).equal(expected));
  for (const auto& parameter : plain.parameters.all()) {
    expect_close(parameter->value.grad(), test.grad(parameter->name), 1e-15, parameter->name);
  }
}

}  // namespace
}  // namespace athanor::tests
