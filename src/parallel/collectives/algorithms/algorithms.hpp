// The ways of moving bytes that the table chooses from. Each is collective over the group of `state`, which
// has at least two ranks; buffers as in CollectiveBackend. All leave the same bytes.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/collectives/backend.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {

/// As CollectiveBackend::exchange. Ranks of one call may mix at_once and pairwise.
void exchange(Algorithm algorithm, const CommunicatorState& state, std::span<const MutableBytes> receive,
              std::span<const Bytes> send);

/// Fills every rank's part, which lie one after another in memory; this rank's is there already.
void all_gather(Algorithm algorithm, const CommunicatorState& state, std::span<const MutableBytes> parts);

/// The root's bytes to all ranks.
void broadcast(Algorithm algorithm, const CommunicatorState& state, MutableBytes bytes, int root);

void barrier(Algorithm algorithm, const CommunicatorState& state);

/// Bytes of all parts but this rank's.
std::int64_t bytes_of_others(std::span<const Bytes> parts, int rank);

}  // namespace athanor::parallel::detail
