// A part of a logical tensor in memory: what checkpoints are written from and read into. No ATen: pointers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/shard_spec.hpp"

namespace athanor::checkpoint {

/// Element types of the format, little-endian.
enum class ElementType { f64, f32, bf16, f16, i64 };

std::int64_t element_bytes(ElementType type);
/// "f64", "f32", "bf16", "f16", "i64"; the inverse throws CheckpointError for other words.
std::string_view element_type_name(ElementType type);
ElementType element_type_from_name(std::string_view name);

/// Which part of a logical tensor: elements [first, first + count) of the flattened box. A whole box has
/// first 0 and count box.local_numel(); a rank that shares a box with replicas, or keeps a range of it
/// (ShardedOptimizer), has a part.
struct SliceExtent {
  parallel::ShardSpec box;
  std::int64_t first = 0;
  std::int64_t count = 0;

  static SliceExtent whole_box(const parallel::ShardSpec& box) { return {box, 0, box.local_numel()}; }
  bool operator==(const SliceExtent&) const = default;
};

/// Memory of one part of one logical tensor. `data` has extent.count contiguous elements and belongs to the
/// caller.
struct TensorSlice {
  std::string name;  ///< "<role>/<kind>/<tensor>", e.g. "teacher/exp_avg/layers.0.attention.q.weight"
  ElementType type = ElementType::f32;
  SliceExtent extent;
  void* data = nullptr;

  std::int64_t bytes() const { return extent.count * element_bytes(type); }
};

/// `count` elements that follow each other in a source slice's data and in a target's alike.
struct CopyRun {
  std::int64_t source_first = 0;  ///< counted from the start of the source's data
  std::int64_t target_first = 0;  ///< counted from the start of the target's data
  std::int64_t count = 0;
};

/// The elements that two parts of one logical tensor share, as the longest such runs, in the order of the
/// source. Empty when they share none. Throws InternalError when the global shapes differ.
std::vector<CopyRun> overlap_runs(const SliceExtent& source, const SliceExtent& target);

/// A box of the logical tensor whose elements, in order, are [first, first + count) of a part's data.
struct ExtentBox {
  std::vector<std::int64_t> offset;  ///< in the logical tensor
  std::vector<std::int64_t> shape;
  std::int64_t first = 0;
  std::int64_t count = 0;
};
/// A part as few boxes (at most 2 * dimensions - 1): a flat range of a box is no box itself.
std::vector<ExtentBox> decompose(const SliceExtent& extent);

}  // namespace athanor::checkpoint
