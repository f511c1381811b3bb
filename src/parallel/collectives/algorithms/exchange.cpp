#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "parallel/collectives/algorithms/algorithms.hpp"
#include "parallel/collectives/algorithms/messages.hpp"

namespace athanor::parallel::detail {
namespace {

// Each rank begins with its right-hand neighbour, so that not all of them send to rank 0 first.
int source_at(const CommunicatorState& state, int step) {
  return (state.rank - step + state.size) % state.size;
}
int target_at(const CommunicatorState& state, int step) {
  return (state.rank + step) % state.size;
}

void exchange_at_once(const CommunicatorState& state, std::span<const MutableBytes> receive,
                      std::span<const Bytes> send) {
  Messages messages(state, MessageTag::exchange);
  for (int step = 1; step < state.size; ++step) {
    const int source = source_at(state, step);
    messages.receive(receive[static_cast<std::size_t>(source)], source);
  }
  for (int step = 1; step < state.size; ++step) {
    const int target = target_at(state, step);
    messages.send(send[static_cast<std::size_t>(target)], target);
  }
  messages.wait();
}

void exchange_pairwise(const CommunicatorState& state, std::span<const MutableBytes> receive,
                       std::span<const Bytes> send) {
  Messages messages(state, MessageTag::exchange);
  for (int step = 1; step < state.size; ++step) {
    const int source = source_at(state, step);
    const int target = target_at(state, step);
    messages.receive(receive[static_cast<std::size_t>(source)], source);
    messages.send(send[static_cast<std::size_t>(target)], target);
    messages.wait();
  }
}

// The parts as MPI_Alltoallv wants them: a base and displacements in bytes, which fit an int.
template <typename Part>
struct Layout {
  Layout(std::span<const Part> parts, int own) : counts(parts.size(), 0), offsets(parts.size(), 0) {
    for (std::size_t r = 0; r < parts.size(); ++r) {
      if (is_counted(parts, r, own)) {
        base = base == nullptr ? parts[r].data() : std::min(base, parts[r].data());
      }
    }
    for (std::size_t r = 0; r < parts.size(); ++r) {
      if (is_counted(parts, r, own)) {
        counts[r] = base::checked_cast<int>(parts[r].size(), "the bytes of an all-to-all's part");
        offsets[r] = base::checked_cast<int>(parts[r].data() - base, "the offset of an all-to-all's part");
      }
    }
  }
  static bool is_counted(std::span<const Part> parts, std::size_t r, int own) {
    return static_cast<int>(r) != own && !parts[r].empty();
  }

  typename Part::pointer base = nullptr;
  std::vector<int> counts;
  std::vector<int> offsets;
};

void exchange_collective(const CommunicatorState& state, std::span<const MutableBytes> receive,
                         std::span<const Bytes> send) {
  const Layout<Bytes> from(send, state.rank);
  const Layout<MutableBytes> to(receive, state.rank);
  // MPI libraries may refuse a null buffer even where no element is read from it.
  std::byte nothing{};
  ATHANOR_MPI_CALL(state,
                   MPI_Alltoallv(from.base == nullptr ? &nothing : from.base, from.counts.data(),
                                 from.offsets.data(), MPI_BYTE, to.base == nullptr ? &nothing : to.base,
                                 to.counts.data(), to.offsets.data(), MPI_BYTE, state.comm));
}

}  // namespace

std::int64_t bytes_of_others(std::span<const Bytes> parts, int rank) {
  std::int64_t bytes = 0;
  for (std::size_t r = 0; r < parts.size(); ++r) {
    bytes += static_cast<int>(r) == rank ? 0 : static_cast<std::int64_t>(parts[r].size());
  }
  return bytes;
}

void exchange(Algorithm algorithm, const CommunicatorState& state, std::span<const MutableBytes> receive,
              std::span<const Bytes> send) {
  switch (algorithm) {
    case Algorithm::at_once:
      return exchange_at_once(state, receive, send);
    case Algorithm::pairwise:
      return exchange_pairwise(state, receive, send);
    case Algorithm::collective:
      return exchange_collective(state, receive, send);
    default:
      throw base::InternalError("{} is no algorithm of an exchange", name_of(algorithm));
  }
}

}  // namespace athanor::parallel::detail
