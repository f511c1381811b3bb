// What a sparse layer keeps in FP8 for backward, against the layer that keeps all of it and against plain
// formulae that round explicitly.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "moe/grouped_experts.hpp"
#include "moe_fixture.hpp"
#include "nn/stored_activation.hpp"
#include "support/finite_difference.hpp"

namespace athanor::tests {
namespace {

using moe::MoeOptions;
using nn::ActivationClass;

constexpr std::int64_t hidden = 32;
constexpr auto e4m3 = base::Fp8Format::e4m3;

MoeOptions base_options(std::int64_t shared) {
  MoeOptions options;
  options.num_experts = 8;
  options.top_k = 3;
  options.ffn = 16;
  options.shared_experts = shared;
  options.balance_weight = 0.5;
  return options;
}

at::Tensor rounded(const at::Tensor& x) {
  return nn::restore_activation(nn::store_activation(x.detach(), e4m3), x.scalar_type());
}

struct Layer {
  Layer(const MoeOptions& options, const std::vector<ActivationClass>& classes, at::ScalarType type)
      : parameters({7, type, true}),
        layer(options, moe::MoeLayer::Shape{hidden, 0.2, 0.2, {classes, e4m3}}, "moe.", parameters, grid) {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.attach(at::zeros(parameter->value.sizes(), at::kFloat));
    }
  }
  /// y, the gradient of x, and those of the parameters.
  std::vector<at::Tensor> run(const at::Tensor& values, std::int64_t real_seq) {
    const nn::TokenBatch batch = make_batch(0, values.size(0), real_seq, values.size(1));
    const moe::MoeContext context = make_context(batch, 2, real_seq);
    const at::Tensor x = values.clone().requires_grad_();
    const moe::MoeOutput out = layer.forward(x, context);
    at::Tensor objective = (out.y_BsD * random_tensor(values.sizes(), 8, values.scalar_type())).sum();
    (out.aux.defined() ? objective + out.aux : objective).backward();
    std::vector<at::Tensor> all = {out.y_BsD.detach(), x.grad()};
    for (const auto& parameter : parameters.all()) {
      parameter->grad.finish();
      all.push_back(parameter->grad.buffer().clone());
      parameter->grad.reset();
    }
    return all;
  }
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters;
  moe::MoeLayer layer;
};

// Tokens * (input of the router) + rows * (row, gate and up, result): the router's scores and the gates are
// not among them. The input that shared experts keep too is kept once, and in FP8 where both may.
TEST(StoredExperts, KeepEveryTensorOnce) {
  constexpr std::int64_t tokens = 2 * 12, rows = 3 * tokens;
  const auto kept_of = [](std::int64_t shared, const std::vector<ActivationClass>& classes) {
    Layer layer(base_options(shared), classes, at::kFloat);
    const nn::StoredTotals before = nn::stored_totals();
    layer.run(random_tensor({2, 12, hidden}, 3, at::kFloat), 12);
    const nn::StoredTotals after = nn::stored_totals();
    return after.numbers - before.numbers;
  };
  const std::int64_t of_rows = rows * (hidden + 2 * 16 + hidden);
  const std::int64_t of_shared = tokens * 3 * 32;  // gate, up and their product; of two shared experts
  EXPECT_EQ(kept_of(0, {}), 0);
  EXPECT_EQ(kept_of(0, {ActivationClass::attention, ActivationClass::norm}), 0);
  EXPECT_EQ(kept_of(0, {ActivationClass::experts}), of_rows + tokens * hidden);
  EXPECT_EQ(kept_of(2, {ActivationClass::experts}), of_rows);
  EXPECT_EQ(kept_of(2, {ActivationClass::ffn}), of_shared);
  EXPECT_EQ(kept_of(2, {ActivationClass::experts, ActivationClass::ffn}),
            of_rows + of_shared + tokens * hidden);
}

TEST(StoredExperts, GradientsFollowAndForwardIsNotRounded) {
  for (const std::int64_t shared : {0, 2}) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const std::int64_t real_seq : {12, 9}) {  // with padding too
        const at::Tensor x = random_tensor({2, 12, hidden}, 3, type);
        Layer full(base_options(shared), {}, type);
        Layer kept(base_options(shared), {ActivationClass::experts, ActivationClass::ffn}, type);
        const std::vector<at::Tensor> expected = full.run(x, real_seq);
        const std::vector<at::Tensor> actual = kept.run(x, real_seq);
        EXPECT_TRUE(actual[0].equal(expected[0]));
        for (std::size_t i = 1; i < actual.size(); ++i) {
          const double error = (actual[i] - expected[i]).norm().item<double>();
          EXPECT_GT(error, 0.0) << "tensor " << i << " is not rounded";
          EXPECT_LE(error, 0.05 * expected[i].norm().item<double>()) << "tensor " << i;
        }
      }
    }
  }
}

TEST(StoredExperts, NoTokens) {
  Layer kept(base_options(2), {ActivationClass::experts, ActivationClass::ffn}, at::kFloat);
  const std::vector<at::Tensor> all = kept.run(at::empty({0, 12, hidden}, at::kFloat), 12);
  for (std::size_t i = 2; i < all.size(); ++i) {
    EXPECT_EQ(all[i].abs().max().item<double>(), 0.0);
  }
}

TEST(StoredExperts, WhatIsNotFiniteReachesAWeightGradient) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Layer kept(base_options(0), {ActivationClass::experts}, at::kFloat);
    at::Tensor x = random_tensor({2, 12, hidden}, 3, at::kFloat);
    x[1][3][5] = bad;
    bool finite = true;
    for (const at::Tensor& tensor : kept.run(x, 12)) {
      finite = finite && at::isfinite(tensor).all().item<bool>();
    }
    EXPECT_FALSE(finite);
  }
}

/// Experts alone: rows in, rows out.
struct Experts {
  explicit Experts(const nn::Keep& keep)
      : experts(base_options(0), hidden, {0.2, 0.2, keep}, "", parameters, grid) {
    for (const auto& parameter : parameters.all()) {
      parameter->grad.attach(at::zeros(parameter->value.sizes(), at::kFloat));
    }
  }
  parallel::ProcessGrid grid;
  parallel::ParameterMap parameters{{7, at::kFloat, true}};
  moe::GroupedExperts experts;
};

at::Tensor plain_swiglu(const at::Tensor& gate_up) {
  const std::vector<at::Tensor> halves = gate_up.chunk(2, -1);
  return at::silu(halves[0]) * halves[1];
}

TEST(StoredExperts, GradientsAreThoseOfTheRoundedRowsAndGates) {
  Experts test(e4m3);
  const moe::TokenDispatcher dispatcher(8, test.grid.comm(parallel::Axis::expert));
  moe::Routing routing;
  routing.topk_ids_TK =
      at::repeat_interleave(at::tensor({5, 0, 300, 1, 7, 0, 2, 40}, at::kLong)).unsqueeze(1);
  const std::shared_ptr<const moe::DispatchPlan> plan = dispatcher.plan(routing);
  const std::int64_t num_rows = plan->num_expert_rows();
  ASSERT_EQ(plan->expert_rows, (std::vector<std::int64_t>{5, 0, 300, 1, 7, 0, 2, 40}));
  const at::Tensor rows = random_tensor({num_rows, hidden}, 1, at::kFloat).requires_grad_();
  const at::Tensor dy = random_tensor({num_rows, hidden}, 2, at::kFloat);
  const at::Tensor y = test.experts.forward(rows, plan);
  (y * dy).sum().backward();
  const at::Tensor gate_up_w = test.parameters.find("gate_up")->value.detach();
  const at::Tensor down_w = test.parameters.find("down")->value.detach();
  std::int64_t first = 0;
  for (std::size_t e = 0; e < plan->expert_rows.size(); ++e) {
    const std::int64_t count = plan->expert_rows[e];
    const auto expert = static_cast<std::int64_t>(e);
    const at::Tensor x = rows.detach().narrow(0, first, count), g = dy.narrow(0, first, count);
    const at::Tensor gate_up = at::mm(x, gate_up_w[expert].t());
    const at::Tensor kept = rounded(gate_up).requires_grad_();
    const at::Tensor h = plain_swiglu(kept);
    (h * at::mm(g, down_w[expert])).sum().backward();
    const std::string name = "expert " + std::to_string(e);
    if (count > 0) {
      expect_close(y.detach().narrow(0, first, count), at::mm(plain_swiglu(gate_up), down_w[expert].t()),
                   1e-5, name + " y");
      expect_close(rows.grad().narrow(0, first, count), at::mm(kept.grad(), gate_up_w[expert]), 1e-5,
                   name + " dx");
    }
    expect_close(test.parameters.find("gate_up")->grad.buffer()[expert], at::mm(kept.grad().t(), rounded(x)),
                 1e-5, name + " dgate_up");
    expect_close(test.parameters.find("down")->grad.buffer()[expert], at::mm(g.t(), h.detach()), 1e-5,
                 name + " ddown");
    first += count;
  }
}

}  // namespace
}  // namespace athanor::tests
