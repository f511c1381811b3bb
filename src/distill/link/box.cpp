#include "distill/link/box.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.hpp"

namespace athanor::distill {
namespace {

// Index of the element at (row, position, first column of `box`) in a tensor that holds `holder`.
std::int64_t offset_in(const Box& holder, std::int64_t row, std::int64_t position, std::int64_t column) {
  const auto& [rows, positions, columns] = holder.dims;
  return ((row - rows.first) * positions.count + position - positions.first) * columns.count + column -
         columns.first;
}

// How many of the dimensions 2, 1 of `box` lie in one piece in both tensors: 0, 1 or 2.
int joined_dims(const Box& box, const Box& source, const Box& target) {
  int joined = 0;
  for (std::size_t dim = 2; dim > 0; --dim) {
    if (box.dims[dim] != source.dims[dim] || box.dims[dim] != target.dims[dim]) {
      break;
    }
    ++joined;
  }
  return joined;
}

}  // namespace

Range intersect(const Range& a, const Range& b) {
  const std::int64_t first = std::max(a.first, b.first);
  const std::int64_t end = std::min(a.end(), b.end());
  return end > first ? Range{first, end - first} : Range{};
}

Box intersect(const Box& a, const Box& b) {
  Box common;
  for (std::size_t dim = 0; dim < common.dims.size(); ++dim) {
    common.dims[dim] = intersect(a.dims[dim], b.dims[dim]);
  }
  return common.is_empty() ? Box{} : common;
}

bool Box::contains(const Box& inner) const {
  return inner.is_empty() || intersect(*this, inner) == inner;
}

std::string Box::describe() const {
  return fmt::format("[{}:{}, {}:{}, {}:{}]", dims[0].first, dims[0].end(), dims[1].first, dims[1].end(),
                     dims[2].first, dims[2].end());
}

void copy_box(const Box& box, const Box& source_box, const std::byte* source, const Box& target_box,
              std::byte* target, std::int64_t element_bytes) {
  ATHANOR_CHECK(source_box.contains(box) && target_box.contains(box), "box {} is copied from {} to {}",
                box.describe(), source_box.describe(), target_box.describe());
  if (box.is_empty()) {
    return;
  }
  const auto& [rows, positions, columns] = box.dims;
  const int joined = joined_dims(box, source_box, target_box);
  const std::int64_t rows_at_once = joined == 2 ? rows.count : 1;
  const std::int64_t positions_at_once = joined >= 1 ? positions.count : 1;
  const auto run = static_cast<std::size_t>(rows_at_once * positions_at_once * columns.count * element_bytes);
  for (std::int64_t row = rows.first; row < rows.end(); row += rows_at_once) {
    for (std::int64_t position = positions.first; position < positions.end(); position += positions_at_once) {
      std::memcpy(target + offset_in(target_box, row, position, columns.first) * element_bytes,
                  source + offset_in(source_box, row, position, columns.first) * element_bytes, run);
    }
  }
}

}  // namespace athanor::distill
