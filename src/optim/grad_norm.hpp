// The global gradient norm and the clipping factor.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "parallel/communicator.hpp"

namespace athanor::optim {

/// Sum of squares of gradients over any number of tensors and ranks.
///
/// The squares of one block of block_elements are summed in f64 in a fixed order; the block sums are then
/// added exactly, in a fixed-point number wide enough for every double (Kulisch 1971). The result therefore
/// does not depend on which rank owns which block: its bits are the same for every bucket size and for zero =
/// 0 and 1.
class SquareSum {
 public:
  /// Adds the squares of a contiguous f32 or f64 tensor whose length is a multiple of block_elements.
  void add(const at::Tensor& gradient);
  /// Adds one non-negative number; a non-finite one makes the sum non-finite for good.
  void add_value(double value);
  /// Sums over the ranks of `comm`, so that all hold the same. Collective.
  void all_reduce(const parallel::Communicator& comm);
  /// The sum rounded to double; NaN when anything added on any rank was not finite.
  double value() const;

 private:
  void carry();

  // digits_[i] counts units of 2^(32 i - 1074). 2046 exponents and 53 bits of mantissa reach digit 65; one
  // more takes the carries. A digit holds 2^31 additions before it would overflow.
  static constexpr std::size_t num_digits = 67;
  std::array<std::int64_t, num_digits> digits_{};
  std::int64_t non_finite_ = 0;
};

/// min(1, clip / (norm + 1e-6)), the factor of torch.nn.utils.clip_grad_norm_; 1 when `clip` is 0 (no
/// clipping).
double clip_coefficient(double norm, double clip);

}  // namespace athanor::optim
