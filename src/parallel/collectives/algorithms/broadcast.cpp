#include <algorithm>

#include "base/error.hpp"
#include "parallel/collectives/algorithms/algorithms.hpp"
#include "parallel/collectives/algorithms/messages.hpp"

namespace athanor::parallel::detail {
namespace {

void broadcast_at_once(const CommunicatorState& state, MutableBytes bytes, int root) {
  Messages messages(state, MessageTag::broadcast);
  if (state.rank != root) {
    messages.receive(bytes, root);
  }
  for (int step = 1; step < state.size && state.rank == root; ++step) {
    messages.send(bytes, (root + step) % state.size);
  }
  messages.wait();
}

// In ranks counted from the root, r gets the bytes from r without its lowest set bit and passes them on to
// r + every lower bit.
void broadcast_binomial(const CommunicatorState& state, MutableBytes bytes, int root) {
  Messages messages(state, MessageTag::broadcast);
  const int own = (state.rank - root + state.size) % state.size;
  int bit = 1;
  while (bit < state.size && (own & bit) == 0) {
    bit *= 2;
  }
  if (own != 0) {
    messages.receive(bytes, (own - bit + root) % state.size);
    messages.wait();
  }
  for (bit /= 2; bit > 0; bit /= 2) {
    if (own + bit < state.size) {
      messages.send(bytes, (own + bit + root) % state.size);
    }
  }
  messages.wait();
}

void broadcast_collective(const CommunicatorState& state, MutableBytes bytes, int root) {
  while (!bytes.empty()) {
    const std::size_t count = std::min(bytes.size(), max_message_bytes);
    ATHANOR_MPI_CALL(state, MPI_Bcast(bytes.data(), static_cast<int>(count), MPI_BYTE, root, state.comm));
    bytes = bytes.subspan(count);
  }
}

}  // namespace

void broadcast(Algorithm algorithm, const CommunicatorState& state, MutableBytes bytes, int root) {
  switch (algorithm) {
    case Algorithm::at_once:
      return broadcast_at_once(state, bytes, root);
    case Algorithm::binomial:
      return broadcast_binomial(state, bytes, root);
    case Algorithm::collective:
      return broadcast_collective(state, bytes, root);
    default:
      throw base::InternalError("{} is no algorithm of a broadcast", name_of(algorithm));
  }
}

}  // namespace athanor::parallel::detail
