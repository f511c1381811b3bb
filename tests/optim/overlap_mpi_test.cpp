// Reduction under backward and gathers under forward: the bits, bytes and residuals of the plain way.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "optim/fake_model.hpp"
#include "parallel/collectives/collectives.hpp"
#include "support/mpi_test.hpp"

namespace athanor::optim {
namespace {

using athanor::tests::world;

// y = x, and in backward this gradient of the parameter is added to its accumulator, as layers do.
struct AddToSink : torch::autograd::Function<AddToSink> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor&,
                            parallel::GradAccumulator* sink, const at::Tensor& gradient) {
    ctx->saved_data["sink"] = reinterpret_cast<std::int64_t>(sink);
    ctx->saved_data["gradient"] = gradient;
    return x.clone();
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    auto* sink = reinterpret_cast<parallel::GradAccumulator*>(ctx->saved_data["sink"].toInt());
    sink->add(ctx->saved_data["gradient"].toTensor());
    return {gradients[0], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct Setting {
  GradientWire wire;
  std::int64_t zero = 1;
  at::ScalarType type = at::kFloat;
  bool overlap = false;
  std::int64_t bucket_elements = 2048;
};

// A model of which each rank's autograd finishes the parameters in an order of its own; one parameter is used
// twice, one never, and one on some ranks only.
class Trainee {
 public:
  explicit Trainee(const Setting& setting)
      : type_(setting.type),
        is_stored_(setting.wire.stored != StoredGradients::none),
        grid_(parallel::ParallelDims{.dp = world().size()}, world()),
        model_(tests::fake_parameters(world().size())),
        map_(tests::make_map(model_, world().rank(), setting.type)),
        optimizer_(options_of(setting), setting.wire, map_, grid_) {}

  // Forward and backward of the step's last micro-batch, after `earlier` others.
  void run_backward(std::int64_t step, int earlier, double scale) {
    optimizer_.begin_step();
    for (int micro = 0; micro <= earlier; ++micro) {
      if (micro == earlier) {
        optimizer_.begin_reduction(scale);
      }
      const at::Tensor y = forward(step * 10 + micro);
      torch::autograd::backward({y.sum()}, {});
    }
  }
  UpdateResult step(std::int64_t number, int earlier = 0) {
    const double scale = 1.0 / 64.0;
    run_backward(number, earlier, scale);
    return optimizer_.step({.lr = 1e-2, .gradient_scale = scale});
  }

  at::Tensor forward(std::int64_t salt) {
    at::Tensor x = at::ones({1}).requires_grad_(true);
    const auto& all = map_.all();
    const int rank = world().rank();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const std::size_t p = (i * 5 + static_cast<std::size_t>(rank + salt)) % all.size();  // 12 parameters
      if (model_[p].name == "kv.weight" || (model_[p].name == "norm.weight" && rank % 2 == 0)) {
        continue;
      }
      x = use(x, p, salt);
    }
    return is_stored_ ? x : use(x, 0, salt + 3);  // what is stored takes one addition
  }
  at::Tensor use(const at::Tensor& x, std::size_t p, std::int64_t salt) {
    parallel::Parameter& parameter = *map_.all()[p];
    const at::ScalarType accumulation = parallel::accumulation_type(type_);
    at::Tensor gradient = tests::local_gradient(model_[p], p, world().rank(), salt, accumulation);
    if (spoils_ && world().rank() == world().size() - 1 && gradient.numel() > 0) {
      gradient.view({-1})[0] = std::numeric_limits<double>::quiet_NaN();
    }
    return AddToSink::apply(x, parameter.value, &parameter.grad, gradient);
  }

  ShardedOptimizer& optimizer() { return optimizer_; }
  parallel::ParameterMap& map() { return map_; }
  void spoil(bool spoils) { spoils_ = spoils; }

  // All that an optimizer keeps, copied.
  std::map<std::string, at::Tensor> state() {
    std::map<std::string, at::Tensor> result;
    for (const auto& parameter : map_.all()) {
      result[parameter->name] = parameter->value.detach().clone();
    }
    for (const OwnedState& owned : optimizer_.owned_state()) {
      const std::string at = owned.parameter->name + "[" + std::to_string(owned.first) + "]";
      result[at + ".master"] = owned.master.clone();
      result[at + ".exp_avg"] = owned.exp_avg.clone();
      result[at + ".exp_avg_sq"] = owned.exp_avg_sq.clone();
    }
    for (const ResidualState& residual : optimizer_.residual_state()) {
      result[residual.parameter->name + ".residual"] = residual.residual.clone();
    }
    return result;
  }

 private:
  static OptimOptions options_of(const Setting& setting) {
    OptimOptions options;
    options.zero = setting.zero;
    options.bucket_elements = setting.bucket_elements;
    options.clip = 20.0;
    options.overlap_reduce = setting.overlap;
    options.overlap_gather = setting.overlap;
    return options;
  }

  at::ScalarType type_;
  bool is_stored_;
  parallel::ProcessGrid grid_;
  std::vector<tests::FakeParameter> model_;
  parallel::ParameterMap map_;
  ShardedOptimizer optimizer_;
  bool spoils_ = false;
};

void expect_equal_bits(const std::map<std::string, at::Tensor>& ours,
                       const std::map<std::string, at::Tensor>& theirs) {
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, value] : theirs) {
    ASSERT_TRUE(ours.contains(name)) << name;
    EXPECT_TRUE(at::equal(ours.at(name), value)) << name;
  }
}

std::vector<std::pair<std::string, Setting>> settings() {
  using base::WireType;
  std::vector<std::pair<std::string, Setting>> result = {
      {"full", {}},
      {"zero 0", {.wire = {}, .zero = 0}},
      {"f64", {.wire = {}, .type = at::kDouble}},
      {"bf16 parameters", {.wire = {}, .type = at::kBFloat16}},
      {"one bucket", {.wire = {}, .bucket_elements = 8 << 20}},
      {"bf16 wire", {.wire = {WireType::bf16, {}, false}}},
      {"bf16 wire, feedback", {.wire = {WireType::bf16, {}, true}}},
      {"stored in fp8", {.wire = {WireType::fp8, base::Fp8Format::e4m3, false, StoredGradients::all}}},
      {"fp8 wire", {.wire = {WireType::fp8, base::Fp8Format::e5m2, false}}},
      {"fp8 wire, feedback", {.wire = {WireType::fp8, base::Fp8Format::e4m3, true}, .type = at::kBFloat16}}};
  return result;
}

TEST(Overlap, ChangesNoBitAndNoByte) {
  for (const auto& [name, setting] : settings()) {
    SCOPED_TRACE(name);
    Setting overlapped = setting;
    overlapped.overlap = true;
    Trainee ours(overlapped);
    Trainee theirs(setting);
    parallel::TrafficCounters& traffic = world().traffic();
    for (std::int64_t step = 0; step < 4; ++step) {
      // Gradients that are stored in FP8 are those of one micro-batch.
      const bool is_stored = setting.wire.stored != StoredGradients::none;
      const int earlier = is_stored ? 0 : static_cast<int>(step % 2);
      const bool spoils = step == 2;  // a step with a gradient that is not finite
      ours.spoil(spoils);
      theirs.spoil(spoils);
      traffic.reset();
      const UpdateResult expected = theirs.step(step, earlier);
      const auto expected_bytes = traffic.all();
      const parallel::WireLosses expected_losses = traffic.losses();
      traffic.reset();
      const UpdateResult result = ours.step(step, earlier);
      EXPECT_EQ(traffic.all(), expected_bytes);
      EXPECT_EQ(traffic.losses().underflow, expected_losses.underflow);
      EXPECT_EQ(traffic.losses().nonfinite, expected_losses.nonfinite);
      EXPECT_EQ(result.skipped, expected.skipped);
      EXPECT_EQ(result.skipped, spoils);
      if (!spoils) {
        EXPECT_EQ(result.grad_norm, expected.grad_norm);
      }
      expect_equal_bits(ours.state(), theirs.state());
    }
  }
}

TEST(Overlap, AnAbandonedStepLeavesNoTrace) {
  for (const auto& [name, setting] : settings()) {
    SCOPED_TRACE(name);
    Setting overlapped = setting;
    overlapped.overlap = true;
    Trainee ours(overlapped);
    Trainee theirs(setting);
    for (std::int64_t step = 0; step < 3; ++step) {
      theirs.step(step);
      ours.step(step);
      const auto before = ours.state();
      ours.spoil(step == 1);
      ours.run_backward(step + 50, 0, 0.5);
      ours.optimizer().abandon_step(0.5);
      ours.spoil(false);
      expect_equal_bits(ours.state(), before);
    }
    expect_equal_bits(ours.state(), theirs.state());
  }
}

TEST(Overlap, StepWithoutABackwardReducesAll) {
  Trainee ours(Setting{.wire = {}, .overlap = true});
  Trainee theirs(Setting{});
  for (Trainee* trainee : {&ours, &theirs}) {
    trainee->optimizer().begin_step();
    trainee->map().all()[1]->grad.add(at::ones({37}));
    trainee->optimizer().begin_reduction(1.0);
    trainee->optimizer().step({.lr = 1e-2, .gradient_scale = 1.0});
  }
  expect_equal_bits(ours.state(), theirs.state());
}

TEST(Overlap, AScaleOtherThanTheReductionsIsABug) {
  if (world().size() == 1) {
    Trainee trainee(Setting{.wire = {}, .overlap = true});
    trainee.run_backward(0, 0, 0.5);
    EXPECT_THROW(trainee.optimizer().step({.lr = 1e-2, .gradient_scale = 0.25}), base::InternalError);
  }
}

// A bucket begins to travel within backward; what comes later is not lost in silence.
TEST(Overlap, AGradientAfterItsBucketWentIsABug) {
  Trainee trainee(Setting{.wire = {}, .overlap = true, .bucket_elements = 8 << 20});
  trainee.optimizer().begin_step();
  trainee.optimizer().begin_reduction(1.0);
  const auto parameters = trainee.map().all();
  at::Tensor x = at::ones({1}).requires_grad_(true);
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    x = trainee.use(x, p, 0);
  }
  torch::autograd::backward({x.sum()}, {});
  int closed = 0;
  for (const auto& parameter : parameters) {
    closed += parameter->grad.is_closed() ? 1 : 0;
  }
  EXPECT_EQ(closed > 0, world().size() > 1) << "nothing was sent while backward ran";
  const auto& embedding = *parameters.front();
  if (embedding.grad.is_closed()) {
    EXPECT_THROW(parameters.front()->grad.add(at::ones({50, 7})), base::InternalError);
    EXPECT_THROW(parameters.front()->grad.finish(), base::InternalError);
  }
  trainee.optimizer().step({.lr = 1e-2, .gradient_scale = 1.0});
}

// Layers that share a parameter and are recomputed are backward passes of their own.
TEST(Overlap, SharedParametersWaitForTheEndOfBackward) {
  std::map<std::string, at::Tensor> states[2];
  for (const bool overlap : {false, true}) {
    parallel::ParameterMap map({.seed = 5, .dtype = at::kFloat});
    const parallel::ParameterOptions options{
        .name = "shared", .shard = tests::ShardSpec::whole({300}), .init = {}};
    map.add(options);
    const auto shared = map.add(options);
    EXPECT_EQ(shared->num_layers, 2);
    const parallel::ProcessGrid grid(parallel::ParallelDims{.dp = world().size()}, world());
    OptimOptions optim;
    optim.overlap_reduce = optim.overlap_gather = overlap;
    ShardedOptimizer optimizer(optim, {}, map, grid);
    optimizer.begin_step();
    optimizer.begin_reduction(1.0);
    for (int layer = 0; layer < 2; ++layer) {
      const at::Tensor x = at::ones({1}).requires_grad_(true);
      const at::Tensor gradient = at::full({300}, 1.0 + layer + 0.1 * world().rank());
      torch::autograd::backward({AddToSink::apply(x, shared->value, &shared->grad, gradient).sum()}, {});
    }
    optimizer.step({.lr = 1e-2, .gradient_scale = 1.0});
    states[overlap ? 1 : 0]["value"] = map.find("shared")->value.detach().clone();
    states[overlap ? 1 : 0]["gradient"] = shared->grad.buffer().clone();
  }
  expect_equal_bits(states[1], states[0]);
}

TEST(Overlap, AParameterIsReadableWhenAskedFor) {
  Trainee ours(Setting{.wire = {}, .overlap = true, .bucket_elements = 512});
  Trainee theirs(Setting{.wire = {}, .bucket_elements = 512});
  const auto kept = ours.map().all();
  for (std::int64_t step = 0; step < 3; ++step) {
    ours.step(step);
    theirs.step(step);
    // In any order, each on its own, and not the same one first on all ranks.
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const std::size_t p = (i * 7 + static_cast<std::size_t>(world().rank() + 2 * step)) % kept.size();
      if (step == 1) {
        EXPECT_EQ(ours.map().find(kept[p]->name), kept[p]);
      } else {
        kept[p]->wait_until_readable();
      }
      EXPECT_TRUE(at::equal(kept[p]->value, theirs.map().all()[p]->value)) << kept[p]->name;
    }
  }
}

TEST(Overlap, TheOptimizerMayGoWithGathersUnderWay) {
  const auto model = tests::fake_parameters(world().size());
  parallel::ParameterMap map = tests::make_map(model, world().rank(), at::kFloat);
  const parallel::ProcessGrid grid(parallel::ParallelDims{.dp = world().size()}, world());
  OptimOptions options;
  options.overlap_gather = true;
  {
    ShardedOptimizer optimizer(options, {}, map, grid);
    optimizer.begin_step();
    optimizer.step({.lr = 1e-2, .gradient_scale = 1.0});
  }
  for (const auto& parameter : map.all()) {
    EXPECT_FALSE(parameter->before_read);
    EXPECT_TRUE(parameter->value.isfinite().all().item<bool>());
  }
}

// Loaded weights are not overwritten by a gather of older ones.
TEST(Overlap, LoadingWaitsForAGatherUnderWay) {
  Trainee trainee(Setting{.wire = {}, .overlap = true});
  trainee.step(0);
  for (const OwnedState& owned : trainee.optimizer().owned_state()) {
    at::Tensor master = owned.master;
    master.fill_(2.5);
  }
  trainee.optimizer().publish_master();
  for (const auto& parameter : trainee.map().all()) {
    EXPECT_TRUE(parameter->value.eq(2.5).all().item<bool>()) << parameter->name;
  }
}

}  // namespace
}  // namespace athanor::optim
