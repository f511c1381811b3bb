// Gradients of one flat storage that wait for their reduction in FP8.
#pragma once

#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include "base/precision.hpp"
#include "optim/optim_options.hpp"
#include "parallel/parameter_map.hpp"
#include "parallel/traffic.hpp"

namespace athanor::optim::detail {

/// Whether `wire` stores the gradients of parameters of this kind in FP8.
bool are_stored(const GradientWire& wire, parallel::ParameterKind kind);

/// One record (fp8_parts.hpp) for each block of a flat storage: what a rank sends of its gradients, made when
/// a gradient is. So each number is rounded once, to what is sent without it too. 132 bytes for 128 numbers.
class StoredGradientRecords {
 public:
  /// `total` elements, a multiple of a block; zeros.
  StoredGradientRecords(std::int64_t total, base::Fp8Format format);

  /// Rounds a gradient (f32, contiguous) to the elements from `first` on, which begin a block; the rest of
  /// its last block becomes zero. What is lost is counted in `traffic`.
  void put(std::int64_t first, const at::Tensor& gradient, parallel::TrafficCounters& traffic);
  /// The records of elements [first, first + count), whole blocks, as a view.
  at::Tensor records(std::int64_t first, std::int64_t count) const;
  /// The numbers of elements [first, first + count), whole blocks: f32 [count].
  at::Tensor read(std::int64_t first, std::int64_t count) const;
  /// Calls function(first, numbers) for all elements in order, a piece at a time.
  void for_each_piece(
      const std::function<void(std::int64_t first, const at::Tensor& numbers)>& function) const;

  std::int64_t bytes() const { return static_cast<std::int64_t>(records_.nbytes()); }

 private:
  base::Fp8Format format_;
  at::Tensor records_;  // uint8 [blocks, record_bytes]
};

}  // namespace athanor::optim::detail
