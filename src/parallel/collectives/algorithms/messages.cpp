#include "parallel/collectives/algorithms/messages.hpp"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

namespace athanor::parallel::detail {
namespace {

std::size_t piece(std::size_t bytes) {
  return std::min(bytes, max_message_bytes);
}

std::string_view name_of(MessageTag tag) {
  switch (tag) {
    case MessageTag::exchange:
      return "exchange";
    case MessageTag::all_gather:
      return "all_gather";
    case MessageTag::broadcast:
      return "broadcast";
    case MessageTag::barrier:
      return "barrier";
  }
  return "";
}

}  // namespace

void Messages::receive(MutableBytes bytes, int source) {
  for (; !bytes.empty(); bytes = bytes.subspan(piece(bytes.size()))) {
    ATHANOR_MPI_CALL(state_, MPI_Irecv(bytes.data(), static_cast<int>(piece(bytes.size())), MPI_BYTE, source,
                                       static_cast<int>(tag_), state_.comm, add(source)));
  }
}

void Messages::send(Bytes bytes, int target) {
  for (; !bytes.empty(); bytes = bytes.subspan(piece(bytes.size()))) {
    ATHANOR_MPI_CALL(state_, MPI_Isend(bytes.data(), static_cast<int>(piece(bytes.size())), MPI_BYTE, target,
                                       static_cast<int>(tag_), state_.comm, add(target)));
  }
}

// One by one: Open MPI 4.1's MPI_Waitall may spin for ever when a message failed before it was called.
void Messages::wait() {
  for (auto& [request, peer] : requests_) {
    const int code = MPI_Wait(&request, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) {
      check_mpi(code, fmt::format("MPI_Wait ({} with rank {})", name_of(tag_), peer), state_.name,
                state_.rank, state_.size);
    }
  }
  requests_.clear();
}

}  // namespace athanor::parallel::detail
