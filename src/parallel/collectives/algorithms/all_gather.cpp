#include <vector>

#include "base/error.hpp"
#include "parallel/collectives/algorithms/algorithms.hpp"
#include "parallel/collectives/algorithms/contiguous_type.hpp"
#include "parallel/collectives/algorithms/messages.hpp"
#include "parallel/collectives/row_units.hpp"

namespace athanor::parallel::detail {
namespace {

int neighbour(const CommunicatorState& state, int distance) {
  return (state.rank + distance + state.size) % state.size;
}

MutableBytes part_of(std::span<const MutableBytes> parts, int rank) {
  return parts[static_cast<std::size_t>(rank)];
}

void all_gather_at_once(const CommunicatorState& state, std::span<const MutableBytes> parts) {
  Messages messages(state, MessageTag::all_gather);
  for (int step = 1; step < state.size; ++step) {
    messages.receive(part_of(parts, neighbour(state, -step)), neighbour(state, -step));
  }
  for (int step = 1; step < state.size; ++step) {
    messages.send(part_of(parts, state.rank), neighbour(state, step));
  }
  messages.wait();
}

void all_gather_pairwise(const CommunicatorState& state, std::span<const MutableBytes> parts) {
  Messages messages(state, MessageTag::all_gather);
  for (int step = 1; step < state.size; ++step) {
    messages.receive(part_of(parts, neighbour(state, -step)), neighbour(state, -step));
    messages.send(part_of(parts, state.rank), neighbour(state, step));
    messages.wait();
  }
}

void all_gather_ring(const CommunicatorState& state, std::span<const MutableBytes> parts) {
  Messages messages(state, MessageTag::all_gather);
  for (int step = 1; step < state.size; ++step) {
    messages.receive(part_of(parts, neighbour(state, -step)), neighbour(state, -1));
    messages.send(part_of(parts, neighbour(state, 1 - step)), neighbour(state, 1));
    messages.wait();
  }
}

void all_gather_collective(const CommunicatorState& state, std::span<const MutableBytes> parts) {
  std::vector<std::int64_t> bytes;
  std::byte nothing{};  // MPI libraries may refuse a null buffer even where no element is read from it
  std::byte* output = nullptr;
  for (const MutableBytes& part : parts) {
    bytes.push_back(static_cast<std::int64_t>(part.size()));
    output = output == nullptr && !part.empty() ? part.data() : output;
  }
  if (output == nullptr) {
    output = &nothing;
  }
  const std::int64_t unit = rows_per_unit(bytes);
  const RowUnits units = in_units(bytes, unit);
  const ContiguousType type(unit, state);
  ATHANOR_MPI_CALL(state, MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, output, units.counts.data(),
                                         units.offsets.data(), type.get(), state.comm));
}

}  // namespace

void all_gather(Algorithm algorithm, const CommunicatorState& state, std::span<const MutableBytes> parts) {
  switch (algorithm) {
    case Algorithm::at_once:
      return all_gather_at_once(state, parts);
    case Algorithm::pairwise:
      return all_gather_pairwise(state, parts);
    case Algorithm::ring:
      return all_gather_ring(state, parts);
    case Algorithm::collective:
      return all_gather_collective(state, parts);
    default:
      throw base::InternalError("{} is no algorithm of an all-gather", name_of(algorithm));
  }
}

}  // namespace athanor::parallel::detail
