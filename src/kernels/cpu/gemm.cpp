// Blocks of the right operand packed into panels of 32 columns, against which tiles of up to 12 rows are made
// in registers (Goto & van de Geijn 2008).
#include "kernels/gemm.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/error.hpp"
#include "kernels/cpu/elements.hpp"
#include "kernels/cpu/gemm_tiles.hpp"

namespace athanor::kernels::cpu {

#if defined(__x86_64__)

namespace {

constexpr std::int64_t block_rows = 240;     // of a: what is read again for every panel stays in the caches
constexpr std::int64_t block_columns = 256;  // of b: packed at a time
constexpr std::int64_t block_units = 256;    // of the depth: a panel takes 32 KiB

/// Memory that calls of one thread reuse.
float* scratch(std::vector<float>& storage, std::int64_t elements) {
  if (static_cast<std::int64_t>(storage.size()) < elements) {
    storage.resize(static_cast<std::size_t>(elements));
  }
  return storage.data();
}
thread_local std::vector<float> packed_right;
thread_local std::vector<float> packed_left;
thread_local std::vector<float> partial_sums;

/// One product, blocked. `T` is Type's element.
template <typename Type, typename C>
class Product {
  using T = typename Type::Element;
  static constexpr std::int64_t unit = Type::depth_of_unit;
  static constexpr std::int64_t block_depth = block_units * unit;

 public:
  Product(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, bool add, C* c,
          std::int64_t c_stride)
      : a_(a), b_(b), shape_(shape), add_(add), c_(c), c_stride_(c_stride) {}

  void run() {
    for (std::int64_t column = 0; column < shape_.columns; column += block_columns) {
      const std::int64_t columns = std::min(block_columns, shape_.columns - column);
      if (std::is_same_v<C, float> || shape_.depth <= block_depth) {
        run_columns<C>(column, columns, c_ + column, c_stride_);
      } else {
        float* sums = scratch(partial_sums, shape_.rows * columns);
        run_columns<float>(column, columns, sums, columns);
        dispatch<Convert>(sums, shape_.rows, columns, c_ + column, c_stride_);
      }
    }
  }

 private:
  struct Convert {
    ATHANOR_KERNEL_INLINE static void run(const float* sums, std::int64_t rows, std::int64_t columns, C* out,
                                          std::int64_t stride) {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < columns; ++i) {
          out[r * stride + i] = store<C>(sums[r * columns + i]);
        }
      }
    }
  };

  /// A block of the result's columns, whose first element is `out`.
  template <typename Out>
  void run_columns(std::int64_t column, std::int64_t columns, Out* out, std::int64_t stride) {
    if (shape_.depth == 0) {
      for (std::int64_t r = 0; r < (add_ ? 0 : shape_.rows); ++r) {
        std::fill_n(out + r * stride, columns, Out(0));
      }
    }
    for (std::int64_t first = 0; first < shape_.depth; first += block_depth) {
      const std::int64_t depth = std::min(block_depth, shape_.depth - first);
      const float* right = pack_right(column, columns, first, depth);
      for (std::int64_t row = 0; row < shape_.rows; row += block_rows) {
        const std::int64_t rows = std::min(block_rows, shape_.rows - row);
        const LeftUnits left = left_units(row, rows, first, depth);
        const std::int64_t units = ceil_div(depth, unit);
        Out* const target = out + row * stride;
        if (rows_alias(stride * static_cast<std::int64_t>(sizeof(Out))) && !add_ && depth == shape_.depth) {
          // Made in place, a tile's rows would push each other out of the cache.
          auto* made = reinterpret_cast<Out*>(scratch(partial_sums, rows * columns));
          tiles(left, right, rows, columns, units, false, made, columns);
          copy_rows(made, columns, rows, columns, target, stride);
        } else {
          tiles(left, right, rows, columns, units, add_ || first > 0, target, stride);
        }
      }
    }
  }

  /// Columns of b as panels [units][32], one after another.
  const float* pack_right(std::int64_t column, std::int64_t columns, std::int64_t first, std::int64_t depth) {
    const std::int64_t units = ceil_div(depth, unit);
    float* out = scratch(packed_right, ceil_div(columns, panel_columns) * panel_columns * units);
    for (std::int64_t i = 0; i < columns; i += panel_columns) {
      pack<Type>(b_.data + (column + i) * b_.column_stride + first * b_.row_stride, b_.column_stride,
                 b_.row_stride, std::min(panel_columns, columns - i), depth, out + i * units, panel_columns);
    }
    return out;
  }

  /// Rows of a: where they are when units can be read there, else copied.
  LeftUnits left_units(std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t depth) {
    const T* in = a_.data + row * a_.row_stride + first * a_.column_stride;
    const auto row_bytes = a_.row_stride * static_cast<std::int64_t>(sizeof(T));
    if (a_.column_stride == 1 && depth % unit == 0) {
      if (!rows_alias(row_bytes) || shape_.columns <= panel_columns) {
        return {reinterpret_cast<const char*>(in), row_bytes, 4};
      }
      const std::int64_t stride = 4 * ceil_div(depth, unit) + 64;  // rows in different sets of the cache
      auto* out = reinterpret_cast<char*>(scratch(packed_left, rows * stride / 4));
      copy_rows(in, a_.row_stride, rows, depth, reinterpret_cast<T*>(out),
                stride / static_cast<std::int64_t>(sizeof(T)));
      return {out, stride, 4};
    }
    const std::int64_t stride = ceil_div(rows, 16) * 16;
    float* out = scratch(packed_left, stride * ceil_div(depth, unit));
    pack<Type>(in, a_.row_stride, a_.column_stride, rows, depth, out, stride);
    return {reinterpret_cast<const char*>(out), 4, 4 * stride};
  }

  template <typename Out>
  static void tiles(const LeftUnits& left, const float* right, std::int64_t rows, std::int64_t columns,
                    std::int64_t units, bool add, Out* out, std::int64_t stride) {
    const std::int64_t count = ceil_div(rows, tile_rows);
    const std::int64_t height = rows / count;  // as even as can be: the first ones have a row more
    const std::int64_t higher = rows % count;
    const Tile tile = tile_of<Type, Out>(height);
    const Tile higher_tile = tile_of<Type, Out>(height + (higher > 0 ? 1 : 0));
    for (std::int64_t column = 0; column < columns; column += panel_columns) {
      const std::int64_t width = std::min(panel_columns, columns - column);
      std::int64_t row = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        const LeftUnits a{left.data + row * left.row_bytes, left.row_bytes, left.unit_bytes};
        const TileTarget target{out + row * stride + column, stride, width, add};
        (i < higher ? higher_tile : tile)(a, right + column * units, units, target);
        row += height + (i < higher ? 1 : 0);
      }
    }
  }

  Operand<T> a_, b_;
  GemmShape shape_;
  bool add_;
  C* c_;
  std::int64_t c_stride_;
};

}  // namespace

template <>
bool has_gemm<float>() {
  return instruction_set() == InstructionSet::x86_64_v4;
}
template <>
bool has_gemm<c10::BFloat16>() {
  static const bool found =
      instruction_set() == InstructionSet::x86_64_v4 && __builtin_cpu_supports("avx512bf16");
  return found;
}

template <>
bool gemm_is_fastest<float>() {
  static const bool fastest = has_gemm<float>() && __builtin_cpu_is("amd");
  return fastest;
}
template <>
bool gemm_is_fastest<c10::BFloat16>() {
  static const bool fastest = has_gemm<c10::BFloat16>() && !__builtin_cpu_supports("amx-bf16");
  return fastest;
}

template <typename T, typename C>
void gemm(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, GemmMode mode, C* c,
          std::int64_t c_stride) {
  ATHANOR_CHECK(has_gemm<T>() && (a.row_stride == 1 || a.column_stride == 1) &&
                    (b.row_stride == 1 || b.column_stride == 1) &&
                    (mode == GemmMode::overwrite || std::is_same_v<C, float>),
                "a product of {} x {} x {} that this kernel does not make", shape.rows, shape.columns,
                shape.depth);
  using Type = std::conditional_t<std::is_same_v<T, float>, F32, Bf16>;
  Product<Type, C>(a, b, shape, mode == GemmMode::add, c, c_stride).run();
}

#else

template <typename T>
bool has_gemm() {
  return false;
}
template bool has_gemm<float>();
template bool has_gemm<c10::BFloat16>();
template <typename T>
bool gemm_is_fastest() {
  return false;
}
template bool gemm_is_fastest<float>();
template bool gemm_is_fastest<c10::BFloat16>();

template <typename T, typename C>
void gemm(const Operand<T>& a, const Operand<T>& b, const GemmShape& shape, GemmMode mode, C* c,
          std::int64_t c_stride) {
  reference::gemm(a, b, shape, mode, c, c_stride);
}

#endif

#define ATHANOR_INSTANTIATE(T, C)                                                                \
  template void gemm<T, C>(const Operand<T>&, const Operand<T>&, const GemmShape&, GemmMode, C*, \
                           std::int64_t);
ATHANOR_INSTANTIATE(float, float)
ATHANOR_INSTANTIATE(c10::BFloat16, float)
ATHANOR_INSTANTIATE(c10::BFloat16, c10::BFloat16)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
