// The parameters of a model on this rank: name -> tensor, slice, gradient, how it is initialised and updated.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/TensorOptions.h>

#include "parallel/shard_spec.hpp"

namespace athanor::parallel {

/// Whether weight decay applies.
enum class DecayGroup { decay, no_decay };
/// For byte counts only; how a gradient is reduced follows from the ShardSpec.
enum class ParameterKind { dense, expert };

/// Initial values; normal(0, std) draws element i from Philox(seed, initial_weight, name, global element
/// index), so it is the same on every layout.
struct InitialValue {
  enum class Kind { normal, constant } kind = Kind::normal;
  double std = 0.02;
  double constant = 0.0;
};

/// Sum of a parameter's gradients over micro-batches, in the accumulation type.
/// Backward passes add to it directly; there is no .grad and no zeroing pass: the first addition after
/// reset() overwrites.
class GradAccumulator {
 public:
  /// Takes a step's gradient once it is whole (the parameter's shape, accumulation type).
  using Taker = std::function<void(const at::Tensor& gradient)>;

  /// Uses `buffer` (accumulation type, the parameter's shape; normally a view of a flat bucket).
  void attach(at::Tensor buffer);
  /// Uses a buffer that is there only from the first write until `taker` was given the gradient: with the one
  /// addition (or mark_nonempty(), or finish()) that a step makes. A second one before reset() throws
  /// InternalError.
  void attach_taker(std::vector<std::int64_t> shape, const at::TensorOptions& options, Taker taker);
  bool is_attached() const { return buffer_.defined() || taker_; }
  /// Whether buffer() keeps the sum until the next step; with a taker it does not.
  bool keeps_sum() const { return buffer_.defined() && !taker_; }
  /// The sum; only valid after an addition or finish(). With a taker: what to write to before
  /// mark_nonempty().
  const at::Tensor& buffer();
  bool is_empty() const { return empty_; }

  /// Adds a gradient of the parameter's shape (any float dtype).
  void add(const at::Tensor& gradient);
  /// Adds a [m,k] x b [k,n] into the buffer seen as [m,n] (fused into the GEMM where types allow).
  void add_matmul(const at::Tensor& a, const at::Tensor& b);
  /// As add_matmul into the sub-tensor buffer()[index] ([m,n]); all indices of dim 0 must be added or zeroed
  /// with zero_part() before the accumulator counts as non-empty: call mark_nonempty() once after the last
  /// one.
  void add_matmul_part(std::int64_t index, const at::Tensor& a, const at::Tensor& b);
  void zero_part_if_empty(std::int64_t index);
  /// The buffer, zeroed if nothing was added since reset(), for sparse additions; mark_nonempty() ends them.
  const at::Tensor& zeroed_buffer();
  void mark_nonempty();
  /// Forgets the sum: the next addition overwrites. Opens it.
  void reset() {
    empty_ = true;
    closed_ = false;
  }
  /// Writes zeros if nothing was added since reset (a parameter no token reached).
  void finish();
  /// finish(), and the sum is final: whatever adds before the next reset() throws InternalError.
  void close();
  bool is_closed() const { return closed_; }

 private:
  void check_open() const;
  void hold_buffer();

  at::Tensor buffer_;
  std::vector<std::int64_t> shape_;  // with a taker
  at::TensorOptions options_;
  Taker taker_;
  bool empty_ = true;
  bool closed_ = false;
};

/// One parameter of this rank's part of the model.
struct Parameter {
  std::string name;  ///< e.g. "layers.0.attention.q.weight"; the same on every layout
  at::Tensor value;  ///< this rank's slice in the compute type; an autograd leaf
  ShardSpec shard;
  bool trainable = true;
  DecayGroup decay = DecayGroup::decay;
  ParameterKind kind = ParameterKind::dense;
  InitialValue init;
  GradAccumulator grad;
  int num_layers = 1;  ///< that share it
  /// Waits until nothing writes `value` in the background (an optimizer that gathers it); empty: nothing
  /// does. ParameterMap and nn::read_weight() call it, so that only those who keep a Parameter over an update
  /// and look at `value` themselves have to.
  std::function<void()> before_read;

  void wait_until_readable() const {
    if (before_read) {
      before_read();
    }
  }
};

/// Options of add(): everything of a Parameter except its tensor.
struct ParameterOptions {
  std::string name;
  ShardSpec shard;
  DecayGroup decay = DecayGroup::decay;
  ParameterKind kind = ParameterKind::dense;
  InitialValue init;
};

/// The parameters in the order in which the model made them (the same on all ranks of a role). Layers hold
/// the shared pointers; a name is unique. Parameters that come from here may be read at once.
class ParameterMap {
 public:
  /// Allocates and initialises this rank's slice. With `allocate == false` (--dry-run) value stays undefined.
  struct Options {
    std::uint64_t seed = 0;
    at::ScalarType dtype = at::kFloat;
    bool allocate = true;
    at::Device device = at::kCPU;  ///< initial values are made on the CPU: the same on every device
  };
  explicit ParameterMap(const Options& options) : options_(options) {}

  /// Adds a parameter; throws InternalError when the name exists with another shard. Same name and shard:
  /// returns the existing one (layers that share a parameter set).
  std::shared_ptr<Parameter> add(const ParameterOptions& options);
  /// nullptr when absent.
  std::shared_ptr<Parameter> find(const std::string& name) const;
  const std::vector<std::shared_ptr<Parameter>>& all() const;
  const Options& options() const { return options_; }
  /// Elements of all logical tensors / of this rank's slices.
  std::int64_t global_numel() const;
  std::int64_t local_numel() const;

 private:
  Options options_;
  std::vector<std::shared_ptr<Parameter>> parameters_;
  std::unordered_map<std::string, std::shared_ptr<Parameter>> by_name_;
};

/// f64 for f64, f32 for f32, bf16 and fp16.
at::ScalarType accumulation_type(at::ScalarType compute);

}  // namespace athanor::parallel
