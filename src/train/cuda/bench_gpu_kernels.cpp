#include "train/bench_gpu_kernels.hpp"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>

#include "device/cublas_handle.hpp"
#include "device/memory.hpp"
#include "device/stream.hpp"
#include "kernels/activation.hpp"
#include "kernels/adamw.hpp"
#include "kernels/cross_entropy.hpp"
#include "kernels/fp8.hpp"
#include "kernels/grouped_blas.hpp"
#include "kernels/norm.hpp"
#include "kernels/permute.hpp"
#include "kernels/routing.hpp"

namespace athanor::train {
namespace {

namespace gpu = kernels::cuda;
using Element = c10::BFloat16;

/// An array on the device that closures share.
template <typename T>
class Array {
 public:
  explicit Array(std::int64_t count)
      : buffer_(std::make_shared<device::DeviceBuffer>(static_cast<std::size_t>(count) * sizeof(T))) {}
  Array(const std::vector<T>& values, const device::Stream& stream)
      : Array(static_cast<std::int64_t>(values.size())) {
    device::copy_async(data(), values.data(), values.size() * sizeof(T), stream);
    stream.synchronize();
  }
  T* data() const { return reinterpret_cast<T*>(buffer_->data()); }

 private:
  std::shared_ptr<device::DeviceBuffer> buffer_;
};

/// One kernel, ready to be queued. `work` is what a call must move (bytes) or compute (operations).
struct Case {
  std::string name;
  bool is_product = false;
  double work = 0.0;
  std::function<void()> queue;
};

/// Makes the cases, one at a time, so that only one's memory exists.
class Cases {
 public:
  Cases(const BenchKernelsOptions& options, const device::Stream& stream, const device::CublasHandle& blas)
      : stream_(stream),
        blas_(blas),
        tokens_(options.tokens),
        hidden_(options.model.hidden),
        vocab_(options.model.vocab_size),
        ffn_(options.model.moe.ffn),
        choices_(options.model.moe.top_k),
        all_experts_(options.model.moe.num_experts),
        experts_(std::max<std::int64_t>(1, all_experts_ / options.expert_ranks)),
        rows_(tokens_ * choices_),
        chunk_(std::min<std::int64_t>(tokens_, 512)) {}

  std::vector<std::function<Case()>> all() const {
    std::vector<std::function<Case()>> makers = {
        [this] { return norm(); },         [this] { return norm_backward(); },
        [this] { return swiglu(); },       [this] { return swiglu_backward(); },
        [this] { return quantize(); },     [this] { return dequantize(); },
        [this] { return adamw(); },        [this] { return statistics(); },
        [this] { return cross_entropy(); }};
    if (all_experts_ > 0) {
      makers.insert(makers.end(),
                    {[this] { return permute(); }, [this] { return combine(); }, [this] { return choose(); },
                     [this] { return experts("experts' gate and up", hidden_, 2 * ffn_); },
                     [this] { return experts("experts' down", ffn_, hidden_); }});
    }
    return makers;
  }

  /// size x size x size by the library.
  Case square(std::int64_t size) const {
    const std::vector<std::int64_t> rows = {size};
    return product("square product", rows, size, size);
  }

 private:
  template <typename T>
  Array<T> numbers(std::int64_t count) const {
    std::mt19937 generator(17);
    std::uniform_real_distribution<float> uniform(-1.0F, 1.0F);
    std::vector<T> values(static_cast<std::size_t>(count));
    std::generate(values.begin(), values.end(), [&] { return static_cast<T>(uniform(generator)); });
    return {values, stream_};
  }

  /// 0 .. n-1 in random order, each divided by `divisor`.
  Array<std::int64_t> shuffled(std::int64_t n, std::int64_t divisor) const {
    std::vector<std::int64_t> values(static_cast<std::size_t>(n));
    std::iota(values.begin(), values.end(), 0);
    std::shuffle(values.begin(), values.end(), std::mt19937(17));
    std::for_each(values.begin(), values.end(), [divisor](std::int64_t& value) { value /= divisor; });
    return {values, stream_};
  }

  /// A case of `elements` 16-bit numbers and `other` bytes.
  static Case moving(const char* name, std::int64_t elements, std::int64_t other,
                     std::function<void()> queue) {
    return {name, false, 2.0 * static_cast<double>(elements) + static_cast<double>(other), std::move(queue)};
  }

  Case norm() const {
    const auto x = numbers<Element>(tokens_ * hidden_), weight = numbers<Element>(hidden_);
    const Array<Element> y(tokens_ * hidden_);
    const Array<float> rstd(tokens_);
    return moving("rms_norm forward", 2 * tokens_ * hidden_, 4 * tokens_, [=, this] {
      gpu::rms_norm_forward(x.data(), weight.data(), tokens_, hidden_, 1e-6, y.data(), rstd.data(), handle());
    });
  }

  Case norm_backward() const {
    const auto dy = numbers<Element>(tokens_ * hidden_), x = numbers<Element>(tokens_ * hidden_);
    const auto weight = numbers<Element>(hidden_);
    const auto rstd = numbers<float>(tokens_), dweight = numbers<float>(hidden_);
    const Array<Element> dx(tokens_ * hidden_);
    const Array<float> partial(kernels::norm_partials * hidden_);
    return moving("rms_norm backward", 3 * tokens_ * hidden_, 4 * tokens_, [=, this] {
      gpu::rms_norm_backward(dy.data(), x.data(), weight.data(), rstd.data(), tokens_, hidden_, dx.data(),
                             dweight.data(), partial.data(), handle());
    });
  }

  Case swiglu() const {
    const auto gate_up = numbers<Element>(rows_ * 2 * ffn_);
    const Array<Element> y(rows_ * ffn_);
    return moving("swiglu forward", 3 * rows_ * ffn_, 0,
                  [=, this] { gpu::swiglu_forward(gate_up.data(), rows_, ffn_, y.data(), handle()); });
  }

  Case swiglu_backward() const {
    const auto gate_up = numbers<Element>(rows_ * 2 * ffn_), dy = numbers<Element>(rows_ * ffn_);
    const Array<Element> dgate_up(rows_ * 2 * ffn_);
    return moving("swiglu backward", 5 * rows_ * ffn_, 0, [=, this] {
      gpu::swiglu_backward(dy.data(), gate_up.data(), rows_, ffn_, dgate_up.data(), handle());
    });
  }

  Case quantize() const {
    const auto layout = kernels::Fp8Rows::apart(tokens_, hidden_);
    const auto x = numbers<Element>(tokens_ * hidden_);
    const Array<std::uint8_t> codes(tokens_ * hidden_);
    const Array<float> scales(tokens_ * kernels::fp8_blocks(hidden_));
    const Array<kernels::Fp8Counts> counts({kernels::Fp8Counts{}}, stream_);
    return moving("fp8 quantise", tokens_ * hidden_, tokens_ * (hidden_ + 4 * kernels::fp8_blocks(hidden_)),
                  [=, this] {
                    gpu::quantize_fp8_blocks(x.data(), layout, base::Fp8Format::e4m3, codes.data(),
                                             scales.data(), counts.data(), handle());
                  });
  }

  Case dequantize() const {
    const auto layout = kernels::Fp8Rows::apart(tokens_, hidden_);
    const Array<std::uint8_t> codes(
        std::vector<std::uint8_t>(static_cast<std::size_t>(tokens_ * hidden_), 56), stream_);
    const auto scales = numbers<float>(tokens_ * kernels::fp8_blocks(hidden_));
    const Array<Element> x(tokens_ * hidden_);
    return moving("fp8 dequantise", tokens_ * hidden_, tokens_ * (hidden_ + 4 * kernels::fp8_blocks(hidden_)),
                  [=, this] {
                    gpu::dequantize_fp8_blocks(codes.data(), scales.data(), layout, base::Fp8Format::e4m3,
                                               x.data(), handle());
                  });
  }

  Case adamw() const {
    constexpr std::int64_t n = std::int64_t{1} << 24;
    const auto master = numbers<float>(n), grad = numbers<float>(n);
    const Array<float> mean(std::vector<float>(n, 0.0F), stream_),
        square(std::vector<float>(n, 1.0F), stream_);
    const Array<Element> copy(n);
    return moving("adamw", n, 28 * n, [=, this] {
      gpu::adamw_update(master.data(), mean.data(), square.data(), grad.data(), n, {.lr = 1e-6}, copy.data(),
                        handle());
    });
  }

  Case statistics() const {
    const auto logits = numbers<Element>(chunk_ * vocab_);
    const auto labels = shuffled(chunk_, 1);
    const Array<kernels::SoftmaxStatistics<float>> found(chunk_);
    return moving("softmax statistics", chunk_ * vocab_, 20 * chunk_, [=, this] {
      gpu::softmax_statistics(logits.data(), labels.data(), chunk_, vocab_, found.data(), handle());
    });
  }

  Case cross_entropy() const {
    const auto logits = numbers<Element>(chunk_ * vocab_);
    const auto labels = shuffled(chunk_, 1);
    const Array<float> maximum(std::vector<float>(static_cast<std::size_t>(chunk_), 1.0F), stream_);
    const auto inverse_sum = numbers<float>(chunk_);
    return moving("cross-entropy backward", 2 * chunk_ * vocab_, 16 * chunk_, [=, this] {
      gpu::cross_entropy_backward(logits.data(), labels.data(), maximum.data(), inverse_sum.data(), chunk_,
                                  vocab_, 1.0F, handle());
    });
  }

  Case permute() const {
    const auto source = shuffled(rows_, choices_);
    const auto x = numbers<Element>(tokens_ * hidden_);
    const Array<Element> out(rows_ * hidden_);
    return moving("permute", (tokens_ + rows_) * hidden_, 8 * rows_, [=, this] {
      gpu::permute_tokens(x.data(), source.data(), rows_, hidden_, out.data(), handle());
    });
  }

  Case combine() const {
    const auto slot = shuffled(rows_, 1);
    const auto gates = numbers<float>(rows_);
    const auto x = numbers<Element>(rows_ * hidden_);
    const Array<Element> y(tokens_ * hidden_);
    return moving("unpermute (weighted sum)", (tokens_ + rows_) * hidden_, 12 * rows_, [=, this] {
      gpu::combine_rows(x.data(), slot.data(), gates.data(), tokens_, choices_, hidden_, y.data(), handle());
    });
  }

  Case choose() const {
    const auto scores = numbers<float>(tokens_ * all_experts_);
    const Array<std::int64_t> ids(rows_);
    const kernels::ChoiceShape shape{.experts = all_experts_, .choices = choices_};
    return moving("choice of experts", 0, 4 * tokens_ * all_experts_ + 8 * rows_, [=, this] {
      gpu::choose_experts<float>(scores.data(), nullptr, tokens_, shape, ids.data(), handle());
    });
  }

  Case experts(const char* name, std::int64_t in, std::int64_t out) const {
    const std::vector<std::int64_t> rows(static_cast<std::size_t>(experts_),
                                         std::max<std::int64_t>(1, rows_ / experts_));
    return product(name, rows, in, out);
  }

  /// Rows of each group times the group's matrix.
  Case product(const char* name, const std::vector<std::int64_t>& rows, std::int64_t in,
               std::int64_t out) const {
    const auto groups = static_cast<std::int64_t>(rows.size());
    const std::int64_t all_rows = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    const auto x = numbers<Element>(all_rows * in), w = numbers<Element>(groups * in * out);
    const Array<Element> y(all_rows * out);
    const Array<std::byte> table(kernels::grouped_table_bytes(groups));
    const double operations = 2.0 * static_cast<double>(all_rows) * static_cast<double>(in * out);
    return {name, true, operations, [=, this] {
              gpu::grouped_linear(blas_, x.data(), w.data(), {in, out, rows}, table.data(), y.data());
            }};
  }

  device::StreamHandle handle() const { return stream_.handle(); }

  const device::Stream& stream_;
  const device::CublasHandle& blas_;
  std::int64_t tokens_, hidden_, vocab_, ffn_, choices_, all_experts_, experts_, rows_, chunk_;
};

/// Seconds of one call on the device, from so many that the time to queue one does not show.
double seconds_of(const std::function<void()>& queue, const device::Stream& stream) {
  constexpr int calls = 50;
  device::Event start(device::EventTiming::on);
  device::Event end(device::EventTiming::on);
  start.record(stream);
  for (int call = 0; call < calls; ++call) {
    queue();
  }
  end.record(stream);
  end.synchronize();
  return end.milliseconds_since(start) * 1e-3 / calls;
}

KernelFigure measure(const Case& kernel, const Case& limit, std::int64_t rounds, const device::Stream& stream,
                     const parallel::Communicator& role) {
  kernel.queue();
  limit.queue();
  stream.synchronize();
  std::vector<double> rates, limits, ratios;
  for (std::int64_t round = 0; round < rounds; ++round) {
    role.barrier();
    limits.push_back(limit.work / seconds_of(limit.queue, stream) / 1e9);
    rates.push_back(kernel.work / seconds_of(kernel.queue, stream) / 1e9);
    ratios.push_back(rates.back() / limits.back());
  }
  KernelFigure figure;
  figure.name = kernel.name;
  figure.unit = kernel.is_product ? "GFLOP/s" : "GB/s";
  figure.limit_name = limit.name;
  figure.rate = spread_of(rates).median;
  figure.limit = spread_of(limits).median;
  figure.ratio = spread_of(ratios);
  return figure;
}

/// Reads half of the bytes and writes the other half.
Case copy_of(double bytes, const device::Stream& stream) {
  const auto half = static_cast<std::int64_t>(std::max(bytes, 1024.0) / 2.0);
  const Array<std::byte> from(half), to(half);
  return {"copy", false, 2.0 * static_cast<double>(half), [=, &stream] {
            device::copy_async(to.data(), from.data(), static_cast<std::size_t>(half), stream);
          }};
}

}  // namespace

std::vector<KernelFigure> bench_gpu_kernels(const BenchKernelsOptions& options,
                                            const parallel::Communicator& role) {
  const device::Stream stream;
  const device::CublasHandle blas(stream);
  const Cases cases(options, stream, blas);
  constexpr std::int64_t large = 4096;
  std::vector<KernelFigure> figures;
  for (const std::function<Case()>& make : cases.all()) {
    const Case kernel = make();
    const Case limit = kernel.is_product ? cases.square(large) : copy_of(kernel.work, stream);
    figures.push_back(measure(kernel, limit, options.rounds, stream, role));
  }
  return figures;
}

}  // namespace athanor::train
