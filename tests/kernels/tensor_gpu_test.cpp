// The kernels of CUDA behind TensorKernels against those of the CPU, on the same tensors.
#include "kernels/tensor_kernels.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "device/availability.hpp"
#include "kernels/detail/tensor_kernel_sets.hpp"
#include "kernels/twin_gpu_test.hpp"

namespace athanor::kernels {
namespace {

constexpr at::ScalarType types[] = {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf};

at::ScalarType accumulation_of(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

// The test double of CUDA's runtime works on the host's memory.
at::Tensor on_device(const at::Tensor& tensor) {
  return tensor.defined()
             ? tensor.to(device::compiled_with_cuda() ? at::kCUDA : at::kCPU, /*non_blocking=*/false,
                         /*copy=*/true)
             : tensor;
}

// `rounding`: the type that the values, or the terms of their sums, were rounded to.
void expect_close(const at::Tensor& actual, const at::Tensor& expected, const char* what,
                  at::ScalarType rounding) {
  const double tolerance = rounding == at::kDouble ? 1e-12 : rounding == at::kFloat ? 2e-5 : 2e-2;
  EXPECT_TRUE(at::allclose(actual.cpu().to(at::kDouble), expected.to(at::kDouble), tolerance, tolerance))
      << what << " in " << c10::toString(expected.scalar_type());
}

void expect_close(const at::Tensor& actual, const at::Tensor& expected, const char* what) {
  expect_close(actual, expected, what, expected.scalar_type());
}

class TensorGpu : public tests::GpuKernels {
 protected:
  void SetUp() override {
    tests::GpuKernels::SetUp();
    at::manual_seed(1);
  }
  const TensorKernels& cpu() const { return detail::cpu_kernels(); }
  const TensorKernels& cuda() const { return detail::cuda_kernels(); }
  at::Tensor random(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::randn(sizes, at::TensorOptions().dtype(at::kDouble)).to(type);
  }
};

TEST_F(TensorGpu, NormAndActivation) {
  for (const at::ScalarType type : types) {
    const at::Tensor x = random({3, 5, 48}, type), weight = random({48}, type), dy = random({3, 5, 48}, type);
    const at::Tensor rstd = at::empty({15}, accumulation_of(type)), y = at::empty_like(x),
                     dx = at::empty_like(x);
    const at::Tensor dweight = at::ones({48}, accumulation_of(type));
    const at::Tensor x_g = on_device(x), weight_g = on_device(weight), dy_g = on_device(dy),
                     rstd_g = on_device(rstd), y_g = on_device(y), dx_g = on_device(dx),
                     dweight_g = on_device(dweight);
    cpu().rms_norm_forward(x, weight, 1e-5, y, rstd);
    cuda().rms_norm_forward(x_g, weight_g, 1e-5, y_g, rstd_g);
    expect_close(y_g, y, "y");
    expect_close(rstd_g, rstd, "rstd");
    cpu().rms_norm_backward(dy, x, weight, rstd, dx, dweight);
    cuda().rms_norm_backward(dy_g, x_g, weight_g, rstd_g, dx_g, dweight_g);
    expect_close(dx_g, dx, "dx");
    expect_close(dweight_g, dweight, "dweight", type);

    const at::Tensor h = at::empty({3, 5, 24}, type), dh = random({3, 5, 24}, type),
                     dgate_up = at::empty_like(x);
    const at::Tensor h_g = on_device(h), dh_g = on_device(dh), dgate_up_g = on_device(dgate_up);
    cpu().swiglu_forward(x, h);
    cuda().swiglu_forward(x_g, h_g);
    expect_close(h_g, h, "swiglu");
    cpu().swiglu_backward(dh, x, dgate_up);
    cuda().swiglu_backward(dh_g, x_g, dgate_up_g);
    expect_close(dgate_up_g, dgate_up, "dgate_up");
  }
}

TEST_F(TensorGpu, RotaryAndHeadNorm) {
  for (const at::ScalarType type : types) {
    const at::Tensor wide = random({2, 7, 40}, type);
    const at::Tensor x = wide.narrow(2, 0, 24).view({2, 7, 3, 8});  // a part of a wider projection
    const at::Tensor angle = at::rand({2, 7, 4}, accumulation_of(type));
    const RotaryTables tables{angle.cos(), angle.sin()};
    const RotaryTables tables_g{on_device(tables.cos), on_device(tables.sin)};
    const at::Tensor wide_g = on_device(wide), x_g = wide_g.narrow(2, 0, 24).view({2, 7, 3, 8});
    const at::Tensor y = at::empty({2, 7, 3, 8}, type), y_g = on_device(y);
    for (const auto direction : {RotaryDirection::forward, RotaryDirection::inverse}) {
      cpu().rotary(x, tables, direction, y);
      cuda().rotary(x_g, tables_g, direction, y_g);
      expect_close(y_g, y, "rotary");
    }
    const at::Tensor weight = random({8}, type), dy = random({2, 7, 3, 8}, type);
    const at::Tensor rstd = at::empty({2, 7, 3}, accumulation_of(type));
    const at::Tensor dwide = at::zeros_like(wide), dweight = at::zeros({8}, accumulation_of(type));
    const at::Tensor weight_g = on_device(weight), dy_g = on_device(dy), rstd_g = on_device(rstd),
                     dwide_g = on_device(dwide), dweight_g = on_device(dweight);
    const auto heads = [](const at::Tensor& of) { return of.narrow(2, 0, 24).view({2, 7, 3, 8}); };
    cpu().head_norm_rotary_forward(x, weight, tables, 1e-5, y, rstd);
    cuda().head_norm_rotary_forward(x_g, weight_g, tables_g, 1e-5, y_g, rstd_g);
    expect_close(y_g, y, "head norm");
    cpu().head_norm_rotary_backward(dy, x, weight, tables, rstd, heads(dwide), dweight);
    cuda().head_norm_rotary_backward(dy_g, x_g, weight_g, tables_g, rstd_g, heads(dwide_g), dweight_g);
    expect_close(dwide_g, dwide, "dx");
    expect_close(dweight_g, dweight, "dweight", type);
  }
}

TEST_F(TensorGpu, CrossEntropyOfTwoSlices) {
  for (const at::ScalarType type : types) {
    const std::int64_t rows = 9;
    const at::ScalarType sum_type = accumulation_of(type);
    const at::Tensor labels = at::tensor({3, 11, 0, 5, 30, -4, 12, 2, 7}, at::kLong);
    const at::Tensor ignored = at::zeros({rows}, at::kBool);
    ignored[4] = true;
    const at::Tensor both = at::empty({2, rows, 3}, sum_type), both_g = on_device(both);
    at::Tensor logits[2], logits_g[2];
    for (int slice = 0; slice < 2; ++slice) {
      logits[slice] = random({rows, 13}, type);
      logits_g[slice] = on_device(logits[slice]);
      const at::Tensor local = labels - 13 * slice;
      cpu().softmax_statistics(logits[slice], local, both[slice]);
      cuda().softmax_statistics(logits_g[slice], on_device(local), both_g[slice]);
    }
    expect_close(both_g, both, "statistics");
    const auto row = [&] { return at::empty({rows}, sum_type); };
    const SoftmaxRows whole{row(), row()}, whole_g{on_device(row()), on_device(row())};
    const at::Tensor loss = row(), loss_g = on_device(row());
    cpu().join_softmax_statistics(both, ignored, whole, loss);
    cuda().join_softmax_statistics(both_g, on_device(ignored), whole_g, loss_g);
    expect_close(loss_g, loss, "loss");
    expect_close(whole_g.inverse_sum, whole.inverse_sum, "inverse_sum");
    const at::Tensor plain = at::logsumexp(at::cat({logits[0], logits[1]}, 1).to(at::kDouble), 1);
    EXPECT_NEAR(loss[4].item<double>(), 0.0, 0.0);
    EXPECT_NEAR(loss[0].item<double>(), (plain[0] - logits[0][0][3].to(at::kDouble)).item<double>(), 1e-5);
    for (int slice = 0; slice < 2; ++slice) {
      const at::Tensor local = labels - 13 * slice;
      cpu().cross_entropy_backward(logits[slice], local, whole, 2.0);
      cuda().cross_entropy_backward(logits_g[slice], on_device(local), whole_g, 2.0);
      expect_close(logits_g[slice], logits[slice], "dlogits");
    }
  }
}

TEST_F(TensorGpu, ALossThatIsNotFiniteStaysSo) {
  const at::Tensor logits = at::zeros({3, 4});
  logits[0][1] = std::nan("");
  logits[1][2] = INFINITY;
  const at::Tensor statistics = at::empty({1, 3, 3}), loss = at::empty({3});
  const at::Tensor labels = at::zeros({3}, at::kLong), ignored = at::zeros({3}, at::kBool);
  const SoftmaxRows rows{at::empty({3}), at::empty({3})};
  for (const TensorKernels* kernels : {&cpu(), &cuda()}) {
    const at::Tensor on = on_device(statistics), to = on_device(loss);
    const SoftmaxRows whole{on_device(rows.maximum), on_device(rows.inverse_sum)};
    if (kernels == &cpu()) {
      kernels->softmax_statistics(logits, labels, statistics[0]);
      kernels->join_softmax_statistics(statistics, ignored, rows, loss);
    } else {
      kernels->softmax_statistics(on_device(logits), on_device(labels), on[0]);
      kernels->join_softmax_statistics(on, on_device(ignored), whole, to);
    }
    const at::Tensor got = kernels == &cpu() ? loss : to.cpu();
    EXPECT_FALSE(std::isfinite(got[0].item<float>()));
    EXPECT_FALSE(std::isfinite(got[1].item<float>()));
    EXPECT_NEAR(got[2].item<float>(), std::log(4.0F), 1e-6F);
  }
}

TEST_F(TensorGpu, RowsAndOptimizer) {
  for (const at::ScalarType type : types) {
    const at::ScalarType sum_type = accumulation_of(type);
    const at::Tensor x = random({6, 16}, type), dy = random({4, 16}, type);
    const at::Tensor slot = at::tensor({0, 5, -1, 2, 3, 1, 4, -1}, at::kLong).view({4, 2});
    const at::Tensor gates = at::rand({4, 2}, sum_type);
    const at::Tensor x_g = on_device(x), dy_g = on_device(dy), slot_g = on_device(slot),
                     gates_g = on_device(gates);
    for (const bool has_gates : {true, false}) {
      const at::Tensor y = at::empty({4, 16}, type), dx = at::zeros_like(x),
                       dgates = at::empty({4, 2}, sum_type);
      const at::Tensor y_g = on_device(y), dx_g = on_device(dx), dgates_g = on_device(dgates);
      cpu().combine_rows(x, slot, has_gates ? gates : at::Tensor(), y);
      cuda().combine_rows(x_g, slot_g, has_gates ? gates_g : at::Tensor(), y_g);
      expect_close(y_g, y, "combined");
      cpu().combine_rows_backward(dy, x, slot, has_gates ? gates : at::Tensor(), dx, dgates);
      cuda().combine_rows_backward(dy_g, x_g, slot_g, has_gates ? gates_g : at::Tensor(), dx_g, dgates_g);
      expect_close(dx_g, dx, "rows' gradients");
      expect_close(dgates_g, dgates, "gates' gradients");
    }
    const at::Tensor out = at::ones({6, 16}, sum_type), out_g = on_device(out);
    const at::Tensor rows = at::tensor({5, 0, 5, -1}, at::kLong);
    cpu().add_rows(dy, rows, out);
    cuda().add_rows(dy_g, on_device(rows), out_g);
    expect_close(out_g, out, "added rows");

    AdamwTensors range{random({300}, sum_type), random({300}, sum_type), random({300}, sum_type).abs(),
                       random({300}, sum_type), sum_type == type ? at::Tensor() : at::empty({300}, type)};
    const AdamwTensors range_g{on_device(range.master), on_device(range.exp_avg), on_device(range.exp_avg_sq),
                               on_device(range.gradient), on_device(range.copy)};
    const AdamwScalars scalars{
        .lr = 0.01, .weight_decay = 0.1, .bias_correction1 = 0.1, .bias_correction2 = 0.01};
    cpu().adamw_update(range, scalars);
    cuda().adamw_update(range_g, scalars);
    expect_close(range_g.master, range.master, "master");
    expect_close(range_g.exp_avg, range.exp_avg, "exp_avg");
    expect_close(range_g.exp_avg_sq, range.exp_avg_sq, "exp_avg_sq");
    if (range.copy.defined()) {
      expect_close(range_g.copy, range.copy, "copy");
    }
    const at::Tensor sums = at::empty({3}, at::kDouble), sums_g = on_device(sums);
    cpu().squares_of_parts(range.gradient, 128, sums);
    cuda().squares_of_parts(range_g.gradient, 128, sums_g);
    expect_close(sums_g, sums, "squares");
    EXPECT_NEAR(sums[2].item<double>(),
                range.gradient.narrow(0, 256, 44).to(at::kDouble).square().sum().item<double>(), 1e-4);
  }
}

}  // namespace
}  // namespace athanor::kernels
