// Messages of any length between two ranks of a group, over point-to-point.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "parallel/collectives/backend.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel::detail {

/// Most bytes of one MPI call, which counts in int.
inline constexpr std::size_t max_message_bytes = std::size_t{1} << 30;

/// One for each operation, so that none takes another's messages.
enum class MessageTag { exchange = 1, all_gather, broadcast, barrier };

/// Messages under way, in pieces whose counts fit an int. Buffers outlive wait(). Empty ones are not sent:
/// both sides know the size.
class Messages {
 public:
  Messages(const CommunicatorState& state, MessageTag tag) : state_(state), tag_(tag) {}

  void receive(MutableBytes bytes, int source);
  void send(Bytes bytes, int target);
  /// Returns when all have arrived and left. Throws CommError naming the other rank.
  void wait();

 private:
  MPI_Request* add(int peer) { return &requests_.emplace_back(MPI_REQUEST_NULL, peer).first; }

  const CommunicatorState& state_;
  MessageTag tag_;
  std::vector<std::pair<MPI_Request, int>> requests_;  // and the other rank
};

}  // namespace athanor::parallel::detail
