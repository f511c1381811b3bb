#include "distill/student_init/weights.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"

namespace athanor::distill::student_init {
namespace {

using parallel::ShardSpec;

// Elements that are read at a time where a tensor is walked over.
constexpr std::int64_t piece_elements = std::int64_t{1} << 24;

// Entries [first, first + n) of `list` that lie within few elements of each other when read as one range.
std::int64_t piece_length(const Indices& list, std::size_t first, std::int64_t row_elements) {
  std::int64_t low = list[first];
  std::int64_t high = list[first];
  std::size_t end = first + 1;
  for (; end < list.size(); ++end) {
    const std::int64_t next_low = std::min(low, list[end]);
    const std::int64_t next_high = std::max(high, list[end]);
    if ((next_high - next_low + 1) * row_elements > piece_elements) {
      break;
    }
    low = next_low;
    high = next_high;
  }
  return static_cast<std::int64_t>(end - first);
}

bool is_range(const Indices& list) {
  for (std::size_t i = 1; i < list.size(); ++i) {
    if (list[i] != list[0] + static_cast<std::int64_t>(i)) {
      return false;
    }
  }
  return true;
}

// The smallest box that has all elements of `lists`, and the lists counted from its corner.
struct Cover {
  ShardSpec box;
  std::vector<Indices> inner;
};
Cover cover(const std::vector<std::int64_t>& shape, const std::vector<Indices>& lists) {
  Cover result{ShardSpec::whole(shape), lists};
  for (std::size_t d = 0; d < lists.size(); ++d) {
    const auto [low, high] = std::ranges::minmax(lists[d]);
    ATHANOR_CHECK(low >= 0 && high < shape[d], "index {} of a dimension of {}", low < 0 ? low : high,
                  shape[d]);
    result.box.offset[d] = low;
    result.box.local_shape[d] = high - low + 1;
    for (std::int64_t& index : result.inner[d]) {
      index -= low;
    }
  }
  return result;
}

at::Tensor gather_piece(const WeightSource& source, const std::string& name,
                        const std::vector<std::int64_t>& shape, const std::vector<Indices>& lists) {
  const Cover wanted = cover(shape, lists);
  at::Tensor piece = source.read(name, wanted.box);
  for (std::size_t d = 0; d < lists.size(); ++d) {
    if (!is_range(lists[d])) {
      piece = piece.index_select(static_cast<std::int64_t>(d), at::tensor(wanted.inner[d], at::kLong));
    }
  }
  return piece.contiguous();
}

}  // namespace

Indices all_of(std::int64_t count) {
  Indices indices(static_cast<std::size_t>(count));
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

Indices largest(const std::vector<double>& scores, std::int64_t count) {
  Indices order = all_of(static_cast<std::int64_t>(scores.size()));
  std::ranges::stable_sort(order, [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count));
  std::ranges::sort(order);
  return order;
}

Indices part_of(const Indices& list, std::int64_t first, std::int64_t count) {
  return {list.begin() + first, list.begin() + first + count};
}

std::string layer_name(std::int64_t layer, const std::string& name) {
  return fmt::format("layers.{}.{}", layer, name);
}

std::vector<std::int64_t> tensor_shape(const ModelShape& shape, const std::string& name) {
  const std::int64_t width = shape.hidden;
  const std::int64_t queries = shape.heads * shape.head_dim;
  if (name == "embedding.weight" || name == "head.weight") {
    return {shape.vocab_size, width};
  }
  if (name == "final_norm.weight" || name == "attention_norm.weight" || name == "ffn_norm.weight") {
    return {width};
  }
  if (name == "attention.q.weight") {
    return {queries, width};
  }
  if (name == "attention.kv.weight") {
    return {2, shape.kv_heads * shape.head_dim, width};
  }
  if (name == "attention.o.weight") {
    return {width, queries};
  }
  if (name == "attention.q_norm.weight" || name == "attention.k_norm.weight") {
    return {shape.head_dim};
  }
  const bool shared = name.starts_with("moe.shared.");
  if (name == "ffn.gate_up.weight" || name == "moe.shared.gate_up.weight") {
    return {2, shared ? shape.shared_ffn : shape.ffn, width};
  }
  if (name == "ffn.down.weight" || name == "moe.shared.down.weight") {
    return {width, shared ? shape.shared_ffn : shape.ffn};
  }
  if (name == "moe.router.weight") {
    return {shape.experts, width};
  }
  if (name == "moe.experts.gate_up") {
    return {shape.experts, 2 * shape.expert_ffn, width};
  }
  if (name == "moe.experts.down") {
    return {shape.experts, width, shape.expert_ffn};
  }
  throw base::InternalError("a transformer has no tensor {}", name);
}

at::Tensor gather(const WeightSource& source, const std::string& name, const std::vector<std::int64_t>& shape,
                  const std::vector<Indices>& lists) {
  ATHANOR_CHECK(lists.size() == shape.size(), "{} lists for {} of {} dimensions", lists.size(), name,
                shape.size());
  std::int64_t row_elements = 1;
  std::vector<std::int64_t> sizes;
  for (std::size_t d = 0; d < lists.size(); ++d) {
    sizes.push_back(static_cast<std::int64_t>(lists[d].size()));
    if (d > 0 && !lists[d].empty()) {
      const auto [low, high] = std::ranges::minmax(lists[d]);
      row_elements *= high - low + 1;
    }
  }
  if (std::ranges::find(sizes, 0) != sizes.end()) {
    return at::empty(sizes);
  }
  at::Tensor result;
  std::vector<Indices> piece = lists;
  for (std::int64_t first = 0; first < sizes[0];) {
    const std::int64_t count = piece_length(lists[0], static_cast<std::size_t>(first), row_elements);
    piece[0] = part_of(lists[0], first, count);
    const at::Tensor read = gather_piece(source, name, shape, piece);
    if (count == sizes[0]) {
      return read;
    }
    if (!result.defined()) {
      result = at::empty(sizes, read.options());
    }
    result.narrow(0, first, count).copy_(read);
    first += count;
  }
  return result;
}

void for_each_rows(const WeightSource& source, const std::string& name,
                   const std::vector<std::int64_t>& shape,
                   const std::function<void(std::int64_t, const at::Tensor&)>& visit) {
  const std::int64_t columns = shape.back();
  const std::int64_t rows = shape[shape.size() - 2];
  const std::int64_t outer = shape.size() == 3 ? shape[0] : 1;
  const std::int64_t step = std::max<std::int64_t>(piece_elements / std::max<std::int64_t>(columns, 1), 1);
  for (std::int64_t i = 0; i < outer; ++i) {
    for (std::int64_t first = 0; first < rows; first += step) {
      const std::int64_t count = std::min(step, rows - first);
      const ShardSpec box = shape.size() == 3 ? ShardSpec{shape, {i, first, 0}, {1, count, columns}}
                                              : ShardSpec{shape, {first, 0}, {count, columns}};
      visit(i * rows + first, source.read(name, box).view({count, columns}));
    }
  }
}

std::vector<double> row_squares(const at::Tensor& matrix, const std::vector<double>& gain) {
  ATHANOR_CHECK(matrix.dim() == 2 && matrix.is_contiguous(), "rows of a contiguous matrix");
  const auto columns = static_cast<std::size_t>(matrix.size(1));
  std::vector<double> sums(static_cast<std::size_t>(matrix.size(0)), 0.0);
  AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "row_squares", [&] {
    const scalar_t* value = matrix.const_data_ptr<scalar_t>();
    for (double& sum : sums) {
      for (std::size_t c = 0; c < columns; ++c) {
        const double scaled = static_cast<double>(*value++) * (gain.empty() ? 1.0 : gain[c]);
        sum += scaled * scaled;
      }
    }
  });
  return sums;
}

void add_column_squares(const at::Tensor& matrix, const std::vector<double>& gain,
                        std::vector<double>& sums) {
  ATHANOR_CHECK(matrix.dim() == 2 && matrix.is_contiguous(), "columns of a contiguous matrix");
  const auto columns = static_cast<std::size_t>(matrix.size(1));
  sums.resize(columns, 0.0);
  AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "add_column_squares", [&] {
    const scalar_t* value = matrix.const_data_ptr<scalar_t>();
    for (std::int64_t row = 0; row < matrix.size(0); ++row) {
      for (std::size_t c = 0; c < columns; ++c) {
        const double scaled = static_cast<double>(*value++) * (gain.empty() ? 1.0 : gain[c]);
        sums[c] += scaled * scaled;
      }
    }
  });
}

std::vector<double> to_doubles(const at::Tensor& vector) {
  const at::Tensor values = vector.to(at::kDouble).contiguous();
  const auto* data = values.const_data_ptr<double>();
  return {data, data + values.numel()};
}

std::vector<double> kept_gain(const StudentPlan& plan, const std::string& name, const WeightSource& source) {
  return to_doubles(gather(source, name, {plan.source.hidden}, {plan.hidden}));
}

}  // namespace athanor::distill::student_init
