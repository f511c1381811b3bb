#include "train/bench_kernels.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/stopwatch.hpp"
#include "kernels/gemm.hpp"
#include "train/detail/kernel_cases.hpp"

namespace athanor::train {
namespace {

/// Seconds of one call, from so many calls that the clock does not matter.
double seconds_of(const std::function<void()>& run) {
  constexpr double enough = 5e-3;
  std::int64_t calls = 0;
  const base::Stopwatch watch;
  do {
    run();
    ++calls;
  } while (watch.seconds() < enough);
  return watch.seconds() / static_cast<double>(calls);
}

/// a = b + s c over `bytes` in all: what memory (or the cache that the bytes fit into) gives.
class Triad {
 public:
  explicit Triad(double bytes) {
    const auto elements = std::max<std::int64_t>(256, static_cast<std::int64_t>(bytes / 12.0));
    a_ = at::zeros({elements});
    b_ = at::ones({elements});
    c_ = at::ones({elements});
  }
  double bytes_per_s() {
    const double seconds = seconds_of([this] { at::add_out(a_, b_, c_, 0.5); });
    return 12.0 * static_cast<double>(a_.numel()) / seconds;
  }

 private:
  at::Tensor a_, b_, c_;
};

/// The fastest square product of 512 by the library or our kernel.
class SquareProduct {
 public:
  explicit SquareProduct(at::ScalarType type)
      : a_(at::randn({size, size}).to(type)), b_(a_.clone()), c_(a_.clone()) {}
  double operations_per_s() {
    const double library = seconds_of([this] { at::mm_out(c_, a_, b_); });
    const double own = a_.scalar_type() == at::kFloat ? own_seconds<float>() : own_seconds<c10::BFloat16>();
    return 2.0 * size * size * size / (own > 0.0 ? std::min(own, library) : library);
  }

 private:
  static constexpr std::int64_t size = 512;

  /// 0 where our kernel does not run.
  template <typename T>
  double own_seconds() {
    if (!kernels::cpu::has_gemm<T>()) {
      return 0.0;
    }
    return seconds_of([this] {
      kernels::cpu::gemm<T, T>({a_.const_data_ptr<T>(), size, 1}, {b_.const_data_ptr<T>(), size, 1},
                               {size, size, size}, kernels::GemmMode::overwrite, c_.mutable_data_ptr<T>(),
                               size);
    });
  }

  at::Tensor a_, b_, c_;
};

KernelFigure measure(const detail::KernelCase& kernel, std::int64_t rounds,
                     const parallel::Communicator& role) {
  Triad triad(kernel.is_product ? 0.0 : kernel.work);
  SquareProduct product(kernel.is_bf16 ? at::kBFloat16 : at::kFloat);
  kernel.fast();
  kernel.reference();
  std::vector<double> rates, references, limits, ratios, speedups;
  for (std::int64_t round = 0; round < rounds; ++round) {
    role.barrier();
    const double limit = kernel.is_product ? product.operations_per_s() : triad.bytes_per_s();
    const double rate = kernel.work / seconds_of(kernel.fast);
    const double reference = kernel.reference_work / seconds_of(kernel.reference);
    rates.push_back(rate / 1e9);
    references.push_back(reference / 1e9);
    limits.push_back(limit / 1e9);
    ratios.push_back(rate / limit);
    speedups.push_back(rate / reference);
  }
  KernelFigure figure;
  figure.name = kernel.name;
  figure.unit = kernel.is_product ? "GFLOP/s" : "GB/s";
  figure.limit_name = kernel.is_product ? "matrix product" : "triad";
  figure.rate = spread_of(rates).median;
  figure.reference_rate = spread_of(references).median;
  figure.limit = spread_of(limits).median;
  figure.ratio = spread_of(ratios);
  figure.speedup = spread_of(speedups);
  return figure;
}

}  // namespace

std::vector<KernelFigure> bench_kernels(const BenchKernelsOptions& options,
                                        const parallel::Communicator& role) {
  const at::NoGradGuard no_grad;
  std::vector<KernelFigure> figures;
  for (const detail::MakeCase& make : detail::kernel_cases(options)) {
    figures.push_back(measure(make(), options.rounds, role));
  }
  return figures;
}

}  // namespace athanor::train
