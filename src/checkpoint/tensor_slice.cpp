#include "checkpoint/tensor_slice.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.hpp"

namespace athanor::checkpoint {
namespace {

struct TypeRow {
  ElementType type;
  std::string_view name;
  std::int64_t bytes;
};
constexpr std::array<TypeRow, 5> type_table{{{ElementType::f64, "f64", 8},
                                             {ElementType::f32, "f32", 4},
                                             {ElementType::bf16, "bf16", 2},
                                             {ElementType::f16, "f16", 2},
                                             {ElementType::i64, "i64", 8}}};

const TypeRow& row_of(ElementType type) {
  const auto row = std::ranges::find(type_table, type, &TypeRow::type);
  ATHANOR_CHECK(row != type_table.end(), "element type {}", static_cast<int>(type));
  return *row;
}

// Elements [low, high) of the part of the box with the coordinates before `dim` fixed, as boxes.
class Decomposer {
 public:
  explicit Decomposer(const SliceExtent& extent)
      : extent_(extent), rank_(extent.box.local_shape.size()), at_(rank_, 0), inner_(rank_, 1) {
    for (std::size_t d = rank_; d-- > 1;) {
      inner_[d - 1] = inner_[d] * extent.box.local_shape[d];
    }
  }

  std::vector<ExtentBox> run() {
    if (extent_.count > 0) {
      split(0, extent_.first, extent_.first + extent_.count);
    }
    return std::move(boxes_);
  }

 private:
  void split(std::size_t dim, std::int64_t low, std::int64_t high) {
    if (rank_ == 0) {
      boxes_.push_back({{}, {}, 0, 1});
      return;
    }
    const std::int64_t inner = inner_[dim];
    std::int64_t row = low / inner;
    const std::int64_t last_row = high / inner;
    if (low % inner != 0) {
      const std::int64_t row_end = std::min(high, (row + 1) * inner);
      descend(dim, row, low, row_end);
      if (row_end == high && row == last_row) {
        return;
      }
      ++row;
    }
    if (row < last_row) {
      add(dim, row, last_row - row);
    }
    if (row <= last_row && high % inner != 0) {
      descend(dim, last_row, last_row * inner, high);
    }
  }

  void descend(std::size_t dim, std::int64_t row, std::int64_t low, std::int64_t high) {
    at_[dim] = row;
    split(dim + 1, low - row * inner_[dim], high - row * inner_[dim]);
    at_[dim] = 0;
  }

  void add(std::size_t dim, std::int64_t row, std::int64_t rows) {
    ExtentBox box{extent_.box.offset, std::vector<std::int64_t>(rank_, 1), next_, rows * inner_[dim]};
    for (std::size_t d = 0; d < dim; ++d) {
      box.offset[d] += at_[d];
    }
    box.offset[dim] += row;
    box.shape[dim] = rows;
    for (std::size_t d = dim + 1; d < rank_; ++d) {
      box.shape[d] = extent_.box.local_shape[d];
    }
    next_ += box.count;
    boxes_.push_back(std::move(box));
  }

  const SliceExtent& extent_;
  std::size_t rank_;
  std::vector<std::int64_t> at_;     // coordinates fixed so far, within the box
  std::vector<std::int64_t> inner_;  // elements of one index step of each dimension
  std::int64_t next_ = 0;            // elements of the part in earlier boxes
  std::vector<ExtentBox> boxes_;
};

void check_inside(const SliceExtent& extent) {
  const parallel::ShardSpec& box = extent.box;
  ATHANOR_CHECK(
      box.offset.size() == box.global_shape.size() && box.local_shape.size() == box.global_shape.size(),
      "a slice of a tensor of {} dimensions has {} offsets and {} extents", box.global_shape.size(),
      box.offset.size(), box.local_shape.size());
  ATHANOR_CHECK(extent.first >= 0 && extent.count >= 0 && extent.first <= box.local_numel() &&
                    extent.count <= box.local_numel() - extent.first,
                "elements [{}, {}) of a box of {}", extent.first, extent.first + extent.count,
                box.local_numel());
}

// Appends the runs that two boxes share. Trailing dimensions that both boxes span wholly are one run.
void append_box_runs(const ExtentBox& source, const ExtentBox& target, std::vector<CopyRun>& runs) {
  const std::size_t rank = source.shape.size();
  std::vector<std::int64_t> low(rank);
  std::vector<std::int64_t> extent(rank);
  for (std::size_t d = 0; d < rank; ++d) {
    low[d] = std::max(source.offset[d], target.offset[d]);
    extent[d] = std::min(source.offset[d] + source.shape[d], target.offset[d] + target.shape[d]) - low[d];
    if (extent[d] <= 0) {
      return;
    }
  }
  std::size_t outer = rank;  // dimensions [0, outer) are walked, the rest is one run
  std::int64_t run = 1;
  while (outer > 0) {
    --outer;
    run *= extent[outer];
    if (extent[outer] != source.shape[outer] || extent[outer] != target.shape[outer]) {
      break;
    }
  }
  std::vector<std::int64_t> at(rank, 0);
  const auto position = [&](const ExtentBox& box) {
    std::int64_t index = 0;
    for (std::size_t d = 0; d < rank; ++d) {
      index = index * box.shape[d] + (low[d] + at[d] - box.offset[d]);
    }
    return box.first + index;
  };
  while (true) {
    runs.push_back({position(source), position(target), run});
    std::size_t d = outer;
    while (d > 0 && ++at[d - 1] == extent[d - 1]) {
      at[--d] = 0;
    }
    if (d == 0) {
      return;
    }
  }
}

// Sorts by source and joins neighbours that continue each other on both sides.
void join_runs(std::vector<CopyRun>& runs) {
  std::ranges::sort(runs, {}, &CopyRun::source_first);
  std::size_t kept = 0;
  for (std::size_t i = 1; i < runs.size(); ++i) {
    CopyRun& last = runs[kept];
    if (last.source_first + last.count == runs[i].source_first &&
        last.target_first + last.count == runs[i].target_first) {
      last.count += runs[i].count;
    } else {
      runs[++kept] = runs[i];
    }
  }
  runs.resize(runs.empty() ? 0 : kept + 1);
}

}  // namespace

std::int64_t element_bytes(ElementType type) {
  return row_of(type).bytes;
}

std::string_view element_type_name(ElementType type) {
  return row_of(type).name;
}

ElementType element_type_from_name(std::string_view name) {
  const auto row = std::ranges::find(type_table, name, &TypeRow::name);
  if (row == type_table.end()) {
    throw base::CheckpointError(
        "element type '{}' is unknown (f64, f32, bf16, f16 and i64 are known) use a checkpoint of this "
        "format",
        name);
  }
  return row->type;
}

std::vector<CopyRun> overlap_runs(const SliceExtent& source, const SliceExtent& target) {
  ATHANOR_CHECK(source.box.global_shape == target.box.global_shape,
                "two parts of one tensor have global shapes [{}] and [{}]",
                fmt::join(source.box.global_shape, ", "), fmt::join(target.box.global_shape, ", "));
  std::vector<CopyRun> runs;
  const std::vector<ExtentBox> targets = decompose(target);
  for (const ExtentBox& from : decompose(source)) {
    for (const ExtentBox& to : targets) {
      append_box_runs(from, to, runs);
    }
  }
  join_runs(runs);
  return runs;
}

std::vector<ExtentBox> decompose(const SliceExtent& extent) {
  check_inside(extent);
  return Decomposer(extent).run();
}

}  // namespace athanor::checkpoint
