// Training on a GPU against training on the CPU: the same losses, dense and sparse, over some steps.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <ostream>
#include <vector>

#include "kernels/detail/tensor_kernel_sets.hpp"
#include "parallel/dtype.hpp"
#include "support/gpu_test.hpp"
#include "support/synthetic_batches.hpp"
#include "train/trainer.hpp"

namespace athanor::train {
namespace {

#if defined(ATHANOR_EMULATED_CUDA)
// Tensors stay in the host's memory, and the double of CUDA's runtime runs the kernels.
struct OnDevice {
  device::Device device;
  kernels::TensorKernelsScope scope{kernels::detail::cuda_kernels()};
};
#else
struct OnDevice {
  device::Device device = device::Device::take_gpu(0);
};
#endif

enum class Layers { dense, sparse };

// Tolerance: of the loss, relative.
struct Case {
  Layers layers = Layers::dense;
  base::ComputeType compute = base::ComputeType::f32;
  double tolerance = 0.0;
};

void PrintTo(const Case& test, std::ostream* out) {
  *out << (test.layers == Layers::dense ? "dense " : "sparse ")
       << c10::toString(parallel::scalar_type(test.compute));
}

tests::SyntheticData data() {
  return {53, 10, 4, 9, true};
}

TrainerOptions options_of(const Case& test) {
  TrainerOptions options;
  model::TransformerConfig& config = options.role.model;
  config.vocab_size = data().vocab;
  config.layers = 2;
  config.hidden = 16;
  config.heads = 4;
  config.kv_heads = 2;
  config.max_seq = 16;
  config.ffn = 24;
  config.init_std = 0.1;
  config.qk_norm = true;
  config.moe.num_experts = test.layers == Layers::sparse ? 8 : 0;
  config.moe.top_k = 2;
  config.moe.ffn = 8;
  config.moe.balance = {moe::BalanceKind::squared};
  options.role.compute = test.compute;
  options.role.optim.lr = 5e-3;
  options.role.optim.schedule = optim::ScheduleKind::constant;
  options.role.micro_batch = 2;
  options.global_batch = data().global_batch;
  options.seq = data().seq;
  options.total_steps = 100;
  options.seed = 5;
  return options;
}

struct Curve {
  std::vector<double> losses, norms;
};

Curve train(const TrainerOptions& options) {
  Trainer trainer(options, parallel::Communicator());
  Curve curve;
  for (std::int64_t step = 0; step < 3; ++step) {  // of one batch, so that the loss falls
    const StepMetrics metrics =
        trainer.step(tests::synthetic_step(data(), trainer.replica(), options.role.micro_batch, 0));
    curve.losses.push_back(metrics.loss);
    curve.norms.push_back(metrics.grad_norm);
  }
  return curve;
}

class TrainerGpu : public testing::TestWithParam<Case> {};

TEST_P(TrainerGpu, FollowsTheCpu) {
  ATHANOR_SKIP_WITHOUT_GPU();
  const Case& test = GetParam();
  TrainerOptions options = options_of(test);
  const Curve expected = train(options);
  const OnDevice on;
  options.device = on.device;
  const Curve actual = train(options);
  for (std::size_t step = 0; step < expected.losses.size(); ++step) {
    EXPECT_NEAR(actual.losses[step] / expected.losses[step], 1.0, test.tolerance) << "loss of step " << step;
    EXPECT_NEAR(actual.norms[step] / expected.norms[step], 1.0, 20 * test.tolerance)
        << "norm of step " << step;
  }
  EXPECT_LT(expected.losses.back(), expected.losses.front());
}

INSTANTIATE_TEST_SUITE_P(Models, TrainerGpu,
                         testing::Values(Case{Layers::dense, base::ComputeType::f64, 1e-10},
                                         Case{Layers::dense, base::ComputeType::bf16, 1e-2},
                                         Case{Layers::sparse, base::ComputeType::f32, 1e-5}));

}  // namespace
}  // namespace athanor::train
