// The teams of bodies/team.hpp as threads of a warp or block, and the launches over rows, columns and
// elements.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "device/stream_handle.hpp"
#include "kernels/bodies/columns.hpp"
#include "kernels/cuda/launch_kernel.cuh"

namespace athanor::kernels::cuda {

inline constexpr unsigned whole_warp = 0xffffffffu;

/// exchange(word) for the 32-bit words of a number or small struct.
template <typename V, typename Exchange>
__device__ __forceinline__ V exchange_words(V value, const Exchange& exchange) {
  constexpr int words = static_cast<int>((sizeof(V) + 3) / 4);
  std::uint32_t word[words] = {};
  std::memcpy(word, &value, sizeof(V));
#pragma unroll
  for (int i = 0; i < words; ++i) {
    word[i] = exchange(word[i]);
  }
  std::memcpy(&value, word, sizeof(V));
  return value;
}

template <int Lanes>
class DeviceTeam {
 public:
  static constexpr int lanes = Lanes;
  static_assert(Lanes == bodies::warp_lanes || Lanes == block_threads, "a warp or a whole block");

  /// `exchange` has exchange_bytes for a block; `scratch` is this team's own. Both in shared memory.
  __device__ DeviceTeam(void* exchange, void* scratch)
      : lane_(static_cast<int>(threadIdx.x) % Lanes), exchange_(exchange), scratch_(scratch) {}

  template <typename F>
  __device__ __forceinline__ void for_each(std::int64_t n, const F& f) const {
    for (std::int64_t i = lane_; i < n; i += Lanes) {
      f(i);
    }
  }
  template <typename F>
  __device__ __forceinline__ void once(const F& f) const {
    if (lane_ == 0) {
      f();
    }
  }
  __device__ __forceinline__ void sync() const {
    if constexpr (Lanes == bodies::warp_lanes) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
  template <typename V, typename F, typename Combine>
  __device__ __forceinline__ V reduce(std::int64_t n, V identity, const F& f, const Combine& combine) const {
    V value = identity;
    for (std::int64_t i = lane_; i < n; i += Lanes) {
      value = combine(value, f(i));
    }
    if constexpr (Lanes == bodies::warp_lanes) {
      value = combine_warp(value, combine);
      return exchange_words(value, [](std::uint32_t word) { return __shfl_sync(whole_warp, word, 0); });
    } else {
      return combine_block(value, combine);
    }
  }
  template <typename V, typename F, typename Combine>
  __device__ __forceinline__ void fold_lanes(std::int64_t n, V identity, const F& f, const Combine& combine,
                                             V* out) const {
    V value = identity;
    for (std::int64_t i = lane_; i < n; i += Lanes) {
      value = combine(value, f(i));
    }
    out[lane_] = value;
  }
  __device__ __forceinline__ void count(std::int64_t* counter, std::int64_t value) const {
    if (lane_ == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(value));
    }
  }
  __device__ __forceinline__ std::uint32_t take(std::uint32_t* counter) const {
    return atomicAdd(counter, 1u);
  }
  __device__ __forceinline__ void* scratch() const { return scratch_; }

 private:
  /// Lane 0 gets the value of the whole warp.
  template <typename V, typename Combine>
  __device__ __forceinline__ static V combine_warp(V value, const Combine& combine) {
#pragma unroll
    for (int step = bodies::warp_lanes / 2; step > 0; step /= 2) {
      const V other =
          exchange_words(value, [&](std::uint32_t word) { return __shfl_down_sync(whole_warp, word, step); });
      value = combine(value, other);
    }
    return value;
  }

  template <typename V, typename Combine>
  __device__ __forceinline__ V combine_block(V value, const Combine& combine) const {
    static_assert(sizeof(V) * Lanes <= exchange_bytes);
    V* all = static_cast<V*>(exchange_);
    all[lane_] = value;
    __syncthreads();
#pragma unroll
    for (int step = Lanes / 2; step >= bodies::warp_lanes; step /= 2) {
      if (lane_ < step) {
        all[lane_] = combine(all[lane_], all[lane_ + step]);
      }
      __syncthreads();
    }
    if (lane_ < bodies::warp_lanes) {
      value = combine_warp(all[lane_], combine);
      if (lane_ == 0) {
        all[0] = value;
      }
    }
    __syncthreads();
    value = all[0];
    __syncthreads();  // before the next reduction writes there
    return value;
  }

  int lane_;
  void* exchange_;
  void* scratch_;
};

/// Of a block's shared memory, before the scratch memory of its teams: warps exchange words by shuffles
/// alone.
__host__ __device__ constexpr std::size_t exchange_bytes_of_team(int lanes) {
  return lanes == bodies::warp_lanes ? 0 : exchange_bytes;
}

template <typename Body>
KernelShape row_kernel_shape(const RowLaunch& launch) {
  return {launch.shape.blocks, dim3(static_cast<unsigned>(launch.shape.per_block * Body::lanes)),
          exchange_bytes_of_team(Body::lanes) + launch.shared_bytes()};
}

template <typename Body>
__global__ void __launch_bounds__(block_threads) row_kernel(const Body body, const RowLaunch launch) {
  char* exchange = static_cast<char*>(block_memory());
  const int place = static_cast<int>(threadIdx.x) / Body::lanes;
  const DeviceTeam<Body::lanes> team(exchange, exchange + exchange_bytes_of_team(Body::lanes) +
                                                   static_cast<std::size_t>(place) * launch.scratch_bytes);
  for (std::int64_t row = launch.shape.first(blockIdx.x, place); row < launch.shape.items;
       row += launch.shape.stride()) {
    body(team, row);
    if (launch.scratch_bytes > 0) {
      team.sync();
    }
  }
}

/// body(team, row) for every row. Asynchronous on `stream`.
template <typename Body>
void launch_rows(const Body& body, std::int64_t rows, device::StreamHandle stream, const char* name) {
  const RowLaunch launch = RowLaunch::of(rows, Body::lanes, bodies::scratch_bytes_of(body));
  if (launch.shape.blocks == 0) {
    return;
  }
  check_fits(launch, name);
  launch_kernel(row_kernel<Body>, row_kernel_shape<Body>(launch), stream, name, body, launch);
}

template <typename Body>
__global__ void __launch_bounds__(block_threads) element_kernel(const Body body, const LaunchShape shape) {
  for (std::int64_t i = shape.first(blockIdx.x, threadIdx.x); i < shape.items; i += shape.stride()) {
    body(i);
  }
}

/// body(i) for every i of [0, n). Asynchronous on `stream`.
template <typename Body>
void launch_elements(const Body& body, std::int64_t n, device::StreamHandle stream, const char* name) {
  const LaunchShape shape = LaunchShape::over(n, block_threads);
  if (shape.blocks == 0) {
    return;
  }
  launch_kernel(element_kernel<Body>, {shape.blocks, dim3(block_threads), 0}, stream, name, body, shape);
}

/// Columns and lanes over rows of a block of column_kernel.
inline constexpr int column_tile = 32;

template <typename Sum>
using LaneSums = Sum[column_tile + 1];

template <typename Body>
KernelShape column_kernel_shape(const LaunchShape& tiles) {
  return {tiles.blocks, dim3(column_tile, bodies::warp_lanes),
          sizeof(LaneSums<typename Body::Sum>) * bodies::warp_lanes};
}

template <typename Body>
__global__ void __launch_bounds__(column_tile* bodies::warp_lanes)
    column_kernel(const Body body, const bodies::ColumnShape shape, const LaunchShape tiles) {
  using Sum = typename Body::Sum;
  auto* lane_sums = static_cast<LaneSums<Sum>*>(block_memory());
  const int lane = static_cast<int>(threadIdx.y), place = static_cast<int>(threadIdx.x);
  for (std::int64_t item = tiles.first(blockIdx.x, 0); item < tiles.items; item += tiles.stride()) {
    const std::int64_t part = item / bodies::ceil_divide(shape.columns, column_tile);
    const std::int64_t tile = item - part * bodies::ceil_divide(shape.columns, column_tile);
    const bodies::Part range = bodies::Part::of(shape.rows, part, shape.rows_per_part);
    const std::int64_t column = tile * column_tile + place;
    Sum sum = 0;
    for (std::int64_t i = lane; column < shape.columns && i < range.count; i += bodies::warp_lanes) {
      sum += body.term(range.first + i, column);
    }
    lane_sums[lane][place] = sum;
    __syncthreads();
    for (int step = bodies::warp_lanes / 2; step > 0; step /= 2) {
      if (lane < step) {
        lane_sums[lane][place] += lane_sums[lane + step][place];
      }
      __syncthreads();
    }
    // No barrier before the next tile: who reads here is who writes there.
    if (lane == 0 && column < shape.columns) {
      body.finish(part, column, lane_sums[0][place]);
    }
  }
}

template <typename Body>
void launch_column_step(const Body& body, const bodies::ColumnShape& shape, device::StreamHandle stream,
                        const char* name) {
  const LaunchShape tiles =
      LaunchShape::over(shape.parts() * bodies::ceil_divide(shape.columns, column_tile), 1);
  if (tiles.blocks == 0) {
    return;
  }
  launch_kernel(column_kernel<Body>, column_kernel_shape<Body>(tiles), stream, name, body, shape, tiles);
}

/// out[c] += sum over rows of body.term(row, c); `partial` has room for [bodies::column_parts, columns].
/// Asynchronous on `stream`.
template <typename Body>
void launch_columns(const Body& body, std::int64_t rows, std::int64_t columns, typename Body::Sum* partial,
                    typename Body::Sum* out, device::StreamHandle stream, const char* name) {
  const bodies::ColumnShape shape = bodies::ColumnShape::first_step(rows, columns);
  launch_column_step(bodies::PartialColumn<Body>{body, columns, partial}, shape, stream, name);
  launch_column_step(bodies::ColumnOfParts<typename Body::Sum>{partial, columns, out}, shape.second_step(),
                     stream, name);
}

}  // namespace athanor::kernels::cuda
