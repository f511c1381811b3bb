// One piece of every rank's part of a bucket on its way to its owner, in the wire's format.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "kernels/fp8.hpp"
#include "optim/optim_options.hpp"
#include "parallel/collectives/pending_exchange.hpp"
#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::optim::detail {

/// What this rank sends and receives of `ranks` parts of equal size, one for each rank of a group. Elements
/// are counted from the beginning of a part; all counts are multiples of block_elements.
class WireParts {
 public:
  virtual ~WireParts() = default;
  /// Sets the parts' size, at most that for which it was made.
  void begin(std::int64_t count) { count_ = count; }
  std::int64_t count() const { return count_; }

  /// Elements [first, first + count) of `flat` become those from `offset` on of what `rank` is sent.
  virtual void round(const at::Tensor& flat, std::int64_t first, std::int64_t count, std::int64_t rank,
                     std::int64_t offset) = 0;
  /// Records of elements that were rounded before become those from `offset` on of what `rank` is sent; fp8
  /// only.
  virtual void take(const at::Tensor& records, std::int64_t rank, std::int64_t offset);
  /// What the elements from `offset` on that `rank` is sent stand for, to `rounded` ([n], f32).
  virtual void read_back(std::int64_t rank, std::int64_t offset, const at::Tensor& rounded) const = 0;
  /// Exchanges the parts and writes the sum of those for this rank, in rank order in f32, to `sum`
  /// ([count()]). Collective over `comm`.
  virtual void sum(const at::Tensor& sum, const parallel::Communicator& comm, parallel::Traffic purpose) = 0;
  /// The same in two halves: what start() returned has ended when add_up() is called.
  virtual parallel::PendingExchange start(const parallel::Communicator& comm, parallel::Traffic purpose) = 0;
  virtual void add_up(const at::Tensor& sum) = 0;
  /// What rounding lost so far.
  const kernels::Fp8Counts& losses() const { return losses_; }

 protected:
  std::int64_t count_ = 0;
  kernels::Fp8Counts losses_{};
};

/// Parts of up to `largest` elements of f32 for a bf16 or fp8 wire.
std::unique_ptr<WireParts> make_rounded_parts(const GradientWire& wire, std::int64_t ranks,
                                              std::int64_t largest);
/// Parts for the full wire: they are sent as they lie in `bucket` ([ranks * count], any float type), which is
/// left alone until the exchange has ended. round(), read_back() and sum() are not for these.
std::unique_ptr<WireParts> make_full_parts(const at::Tensor& bucket, std::int64_t ranks);

}  // namespace athanor::optim::detail
