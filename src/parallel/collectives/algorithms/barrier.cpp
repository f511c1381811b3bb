#include <array>

#include "base/error.hpp"
#include "parallel/collectives/algorithms/algorithms.hpp"
#include "parallel/collectives/algorithms/messages.hpp"

namespace athanor::parallel::detail {
namespace {

// After the round of distance d every rank has heard, by way of others, of the 2d - 1 ranks before it.
void barrier_dissemination(const CommunicatorState& state) {
  Messages messages(state, MessageTag::barrier);
  const std::array<std::byte, 1> sent{};
  std::array<std::byte, 1> received{};
  for (int distance = 1; distance < state.size; distance *= 2) {
    messages.receive(received, (state.rank - distance + state.size) % state.size);
    messages.send(sent, (state.rank + distance) % state.size);
    messages.wait();
  }
}

}  // namespace

void barrier(Algorithm algorithm, const CommunicatorState& state) {
  switch (algorithm) {
    case Algorithm::dissemination:
      return barrier_dissemination(state);
    case Algorithm::collective:
      ATHANOR_MPI_CALL(state, MPI_Barrier(state.comm));
      return;
    default:
      throw base::InternalError("{} is no algorithm of a barrier", name_of(algorithm));
  }
}

}  // namespace athanor::parallel::detail
