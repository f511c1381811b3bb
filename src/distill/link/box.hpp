// Boxes of a three-dimensional array, and copying them between tensors that hold different boxes of it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace athanor::distill {

/// Indices [first, first + count) of one dimension.
struct Range {
  std::int64_t first = 0;
  std::int64_t count = 0;
  std::int64_t end() const { return first + count; }
  bool operator==(const Range&) const = default;
};

/// What two ranges have in common; empty (count 0) when nothing.
Range intersect(const Range& a, const Range& b);

/// A box of a global array [rows, positions, columns]. A tensor that holds a box is contiguous in this order.
struct Box {
  std::array<Range, 3> dims;

  Range rows() const { return dims[0]; }
  std::int64_t numel() const { return dims[0].count * dims[1].count * dims[2].count; }
  bool is_empty() const { return numel() == 0; }
  /// Whether every element of `inner` is in this box.
  bool contains(const Box& inner) const;
  /// This box with other rows.
  Box with_rows(const Range& rows) const { return Box{{rows, dims[1], dims[2]}}; }
  /// "[0:4, 0:17, 3:5]" for messages.
  std::string describe() const;
  bool operator==(const Box&) const = default;
};

/// Common part; all counts 0 when there is none.
Box intersect(const Box& a, const Box& b);

/// Copies the elements of `box` from a tensor that holds `source_box` to one that holds `target_box`; both
/// contain it.
void copy_box(const Box& box, const Box& source_box, const std::byte* source, const Box& target_box,
              std::byte* target, std::int64_t element_bytes);

}  // namespace athanor::distill
