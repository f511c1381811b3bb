#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "nn/functional.hpp"

namespace athanor::nn {

namespace {

/// [B, s, D] of 0 and 1/(1-p) in x's type.
at::Tensor dropout_scale(const at::Tensor& x_BsD, const at::Tensor& sample_ids_B, std::int64_t first_position,
                         const DropoutOptions& options) {
  const base::PhiloxStream stream(options.seed, base::RandomPurpose::dropout, options.site);
  const double keep = 1.0 - options.probability;
  const auto threshold = static_cast<std::uint64_t>(options.probability * 4294967296.0);
  const at::Tensor scale = at::zeros(x_BsD.sizes(), at::kFloat);
  const at::Tensor samples = sample_ids_B.to(at::kLong).contiguous();
  float* out = scale.data_ptr<float>();
  const std::int64_t width = x_BsD.size(2);
  for (std::int64_t b = 0; b < x_BsD.size(0); ++b) {
    const auto sample = static_cast<std::uint64_t>(samples.const_data_ptr<std::int64_t>()[b]);
    for (std::int64_t s = 0; s < x_BsD.size(1); ++s, out += width) {
      const auto position = static_cast<std::uint64_t>(first_position + s);
      for (std::int64_t c = 0; c < width; c += 4) {
        const auto numbers = stream.block(sample, position << 32 | static_cast<std::uint64_t>(c / 4));
        for (std::int64_t j = c; j < std::min(c + 4, width); ++j) {
          out[j] = numbers[static_cast<std::size_t>(j - c)] >= threshold ? 1.0f : 0.0f;
        }
      }
    }
  }
  return scale.to(x_BsD.options()).div_(keep);
}

}  // namespace

at::Tensor dropout(const at::Tensor& x_BsD, const at::Tensor& sample_ids_B, std::int64_t first_position,
                   const DropoutOptions& options) {
  ATHANOR_CHECK(options.probability >= 0.0 && options.probability < 1.0, "dropout probability {}",
                options.probability);
  if (options.probability == 0.0) {
    return x_BsD;
  }
  return x_BsD * dropout_scale(x_BsD, sample_ids_B, first_position, options);
}

}  // namespace athanor::nn
