// How the collectives of device tensors go through NCCL.
#pragma once

#include <cstdint>

namespace athanor::parallel {

/// Point-to-point operations of one NCCL group: NCCL refuses more than some thousands, and each costs memory
/// until the group is launched.
inline constexpr int max_operations_per_group = 1024;
/// Longer messages go in pieces.
inline constexpr std::int64_t max_piece_bytes = std::int64_t{1} << 30;

/// Who adds floats over ranks. `rank_order`: ours, by exchange and addition in rank order; the bits depend on
/// the group's size alone. `nccl`: NCCL's all-reduce and reduce-scatter of f32 and f64 (other types stay
/// ours); its algorithm and protocol are pinned (NcclLibraryOptions), so the bits are fixed per topology.
enum class FloatSums { rank_order, nccl };

/// Whether the host, too, waits for each operation to end: slower, and a fault is found by the operation that
/// has it. Tables whose tensors lie in host memory are always waited for.
enum class HostWait { never, always };

struct NcclOptions {
  double init_deadline_s = 120.0;  ///< for all ranks of a group to come, and for NCCL to connect them
  double deadline_s = 600.0;       ///< for one operation to end
  FloatSums float_sums = FloatSums::rank_order;
  HostWait host_wait = HostWait::never;
  int max_operations = max_operations_per_group;  ///< at least 2
  std::int64_t max_piece_bytes = parallel::max_piece_bytes;
};

}  // namespace athanor::parallel
