#include "parallel/collectives/detail/mpi_exchange.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.hpp"
#include "parallel/collectives/mpi_backend.hpp"

namespace athanor::parallel {
namespace detail {
namespace {

constexpr int tag = 16;  // the blocking operations have the small ones
constexpr std::size_t max_message_bytes = std::size_t{1} << 30;

template <typename Part>
int piece(const Part& bytes) {
  return static_cast<int>(std::min(bytes.size(), max_message_bytes));
}

}  // namespace

MpiExchange::MpiExchange(const CommunicatorState& state, std::span<const MutableBytes> receive,
                         std::span<const Bytes> send)
    : state_(state) {
  ATHANOR_CHECK(receive.size() == static_cast<std::size_t>(state.size) && send.size() == receive.size(),
                "an exchange needs one part for each of the {} ranks of group {}", state.size, state.name);
  // Each rank begins with its right-hand neighbour, so that not all of them send to rank 0 first.
  for (int step = 1; step < state.size; ++step) {
    const int source = (state.rank - step + state.size) % state.size;
    post(receive[static_cast<std::size_t>(source)], source);
  }
  for (int step = 1; step < state.size; ++step) {
    const int target = (state.rank + step) % state.size;
    post(send[static_cast<std::size_t>(target)], target);
  }
}

MpiExchange::Message& MpiExchange::add(int peer, bool is_receive) {
  return messages_.emplace_back(Message{MPI_REQUEST_NULL, peer, is_receive});
}

void MpiExchange::post(MutableBytes bytes, int source) {
  for (; !bytes.empty(); bytes = bytes.subspan(static_cast<std::size_t>(piece(bytes)))) {
    check(
        MPI_Irecv(bytes.data(), piece(bytes), MPI_BYTE, source, tag, state_.comm, &add(source, true).request),
        "MPI_Irecv", source);
  }
}

void MpiExchange::post(Bytes bytes, int target) {
  for (; !bytes.empty(); bytes = bytes.subspan(static_cast<std::size_t>(piece(bytes)))) {
    check(MPI_Isend(bytes.data(), piece(bytes), MPI_BYTE, target, tag, state_.comm,
                    &add(target, false).request),
          "MPI_Isend", target);
  }
}

// Stops at the first message that is under way: one call of MPI moves all of them along.
bool MpiExchange::test() {
  for (; ended_ < messages_.size(); ++ended_) {
    int is_done = 0;
    Message& message = messages_[ended_];
    check(MPI_Test(&message.request, &is_done, MPI_STATUS_IGNORE), "MPI_Test", message.peer);
    if (is_done == 0) {
      return false;
    }
  }
  return true;
}

// One by one: Open MPI 4.1's MPI_Waitall may spin for ever when a message failed before it was called.
void MpiExchange::wait() {
  for (; ended_ < messages_.size(); ++ended_) {
    Message& message = messages_[ended_];
    check(MPI_Wait(&message.request, MPI_STATUS_IGNORE), "MPI_Wait", message.peer);
  }
}

bool MpiExchange::give_up() noexcept {
  bool has_ended = true;
  for (Message& message : messages_) {
    if (message.request == MPI_REQUEST_NULL) {
      continue;
    }
    int is_done = 0;
    if (message.is_receive && MPI_Cancel(&message.request) != MPI_SUCCESS) {
      has_ended = false;
    }
    if (MPI_Test(&message.request, &is_done, MPI_STATUS_IGNORE) != MPI_SUCCESS || is_done == 0) {
      has_ended = false;
    }
  }
  return has_ended;
}

void MpiExchange::check(int code, const char* call, int peer) const {
  if (code != MPI_SUCCESS) {
    check_mpi(code, fmt::format("{} (exchange with rank {})", call, peer), state_.name, state_.rank,
              state_.size);
  }
}

}  // namespace detail

std::unique_ptr<StartedExchange> MpiBackend::start_exchange(std::span<const MutableBytes> receive,
                                                            std::span<const Bytes> send, at::Device device) {
  ATHANOR_CHECK(device.is_cpu(), "an exchange over MPI on group {} got parts on {}", state_.name,
                device.str());
  return std::make_unique<detail::MpiExchange>(state_, receive, send);
}

}  // namespace athanor::parallel
