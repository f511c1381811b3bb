#include "parallel/point_to_point.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <map>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/activity.hpp"
#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

using Ticket = PointToPoint::Ticket;

// A short wait is over after some looks; a long one must leave the processor to those it waits for.
constexpr int looks_before_sleep = 20;
constexpr auto pause_between_looks = std::chrono::microseconds(50);
// What MPI promises at least for the largest tag.
constexpr int least_max_tag = 32767;

enum class Direction { send, receive };

// A buffer under way as one or more messages. MPI reads or writes the bytes until all requests are done; they
// do not move when this struct does.
struct Transfer {
  Direction direction = Direction::send;
  int peer = 0;
  int tag = 0;
  ByteBuffer bytes;
  std::int64_t messages_left = 0;
  std::int64_t arrived = 0;  // bytes received
  std::string problem;
};

}  // namespace

void ByteBuffer::resize(std::size_t size) {
  ATHANOR_CHECK(size <= capacity_, "a buffer of {} bytes is to hold {}", capacity_, size);
  size_ = size;
}

struct PointToPoint::State {
  Communicator comm;
  PointToPointOptions options;
  int max_tag = least_max_tag;
  Ticket next_ticket = 0;
  std::unordered_map<Ticket, Transfer> transfers;
  std::int64_t under_way = 0;
  // Parallel arrays: MPI wants its requests side by side.
  std::vector<MPI_Request> requests;
  std::vector<Ticket> owners;
  std::vector<int> done_indices;
  std::vector<MPI_Status> statuses;
  // Messages to oneself meet here without MPI, by tag and in order.
  std::map<int, std::deque<Ticket>> self_sends;
  std::map<int, std::deque<Ticket>> self_receives;

  const detail::CommunicatorState& mpi() const { return *comm.state(); }

  void find_max_tag() {
    if (comm.is_null()) {
      return;
    }
    int* value = nullptr;
    int is_set = 0;
    ATHANOR_MPI_CALL(mpi(), MPI_Comm_get_attr(mpi().comm, MPI_TAG_UB, &value, &is_set));
    max_tag = is_set != 0 ? *value : least_max_tag;
  }

  Ticket add(Direction direction, int peer, int tag, ByteBuffer bytes) {
    ATHANOR_CHECK(peer >= 0 && peer < comm.size(), "a transfer with rank {} of {}", peer, comm.size());
    ATHANOR_CHECK(tag >= 0 && tag <= max_tag, "a message with tag {} (tags end at {})", tag, max_tag);
    const Ticket ticket = next_ticket++;
    Transfer& transfer = transfers[ticket];
    transfer.direction = direction;
    transfer.peer = peer;
    transfer.tag = tag;
    transfer.bytes = std::move(bytes);
    ++under_way;
    return ticket;
  }

  void start(Ticket ticket) {
    Transfer& transfer = transfers.at(ticket);
    const auto size = static_cast<std::int64_t>(transfer.bytes.size());
    std::int64_t offset = 0;
    do {  // at least one message, also for no bytes
      const std::int64_t part = std::min(size - offset, options.max_message_bytes);
      start_message(ticket, transfer, transfer.bytes.data() + offset,
                    base::checked_cast<int>(part, "a message's bytes"));
      offset += part;
    } while (offset < size);
  }

  void start_message(Ticket ticket, Transfer& transfer, std::byte* data, int count) {
    MPI_Request request = MPI_REQUEST_NULL;
    if (transfer.direction == Direction::send) {
      ATHANOR_MPI_CALL(mpi(),
                       MPI_Isend(data, count, MPI_BYTE, transfer.peer, transfer.tag, mpi().comm, &request));
      comm.traffic().add(options.traffic, count);
    } else {
      ATHANOR_MPI_CALL(mpi(),
                       MPI_Irecv(data, count, MPI_BYTE, transfer.peer, transfer.tag, mpi().comm, &request));
    }
    requests.push_back(request);
    owners.push_back(ticket);
    ++transfer.messages_left;
  }

  void meet_self(int tag) {
    auto& sends = self_sends[tag];
    auto& receives = self_receives[tag];
    while (!sends.empty() && !receives.empty()) {
      Transfer& send = transfers.at(sends.front());
      Transfer& receive = transfers.at(receives.front());
      sends.pop_front();
      receives.pop_front();
      if (send.bytes.size() > receive.bytes.size()) {
        receive.problem = "the message is longer than its buffer";
      } else {
        std::copy_n(send.bytes.data(), send.bytes.size(), receive.bytes.data());
        receive.arrived = static_cast<std::int64_t>(send.bytes.size());
      }
      under_way -= 2;
      send.messages_left = 0;
      receive.messages_left = 0;
    }
  }

  void progress() {
    if (requests.empty()) {
      return;
    }
    done_indices.resize(requests.size());
    statuses.resize(requests.size());
    int done = 0;
    const int code = MPI_Testsome(base::checked_cast<int>(requests.size(), "open requests"), requests.data(),
                                  &done, done_indices.data(), statuses.data());
    int error_class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) {
      ATHANOR_MPI_CALL(mpi(), MPI_Error_class(code, &error_class));
    }
    const bool has_errors = error_class == MPI_ERR_IN_STATUS;
    if (!has_errors) {
      ATHANOR_MPI_CALL(mpi(), code /* MPI_Testsome */);
    }
    for (int i = 0; i < done; ++i) {
      end_message(static_cast<std::size_t>(done_indices[static_cast<std::size_t>(i)]),
                  statuses[static_cast<std::size_t>(i)], has_errors);
    }
    if (done > 0) {
      drop_ended();
    }
  }

  void end_message(std::size_t index, const MPI_Status& status, bool has_errors) {
    Transfer& transfer = transfers.at(owners[index]);
    if (has_errors && status.MPI_ERROR != MPI_SUCCESS) {
      try {
        detail::check_mpi(status.MPI_ERROR, "MPI_Testsome", mpi().name, mpi().rank, mpi().size);
      } catch (const base::CommError& error) {
        transfer.problem = error.what();
      }
    } else if (transfer.direction == Direction::receive) {
      int count = 0;
      ATHANOR_MPI_CALL(mpi(), MPI_Get_count(&status, MPI_BYTE, &count));
      transfer.arrived += count;
    }
    requests[index] = MPI_REQUEST_NULL;
    if (--transfer.messages_left == 0) {
      --under_way;
    }
  }

  // Keeps the order of the others: MPI looks at requests from the front.
  void drop_ended() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (requests[i] != MPI_REQUEST_NULL) {
        requests[kept] = requests[i];
        owners[kept++] = owners[i];
      }
    }
    requests.resize(kept);
    owners.resize(kept);
  }

  // Whether MPI holds none of our buffers after at most `seconds`.
  bool close_within(double seconds) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (transfers.at(owners[i]).direction == Direction::receive) {
        ATHANOR_MPI_CALL(mpi(), MPI_Cancel(&requests[i]));
      }
    }
    const base::Stopwatch watch;
    for (progress(); !requests.empty(); progress()) {
      if (watch.seconds() >= seconds) {
        return false;
      }
      std::this_thread::sleep_for(pause_between_looks);
    }
    return true;
  }
};

PointToPoint::PointToPoint(const Communicator& comm, const std::string& name,
                           const PointToPointOptions& options)
    : state_(std::make_unique<State>()) {
  ATHANOR_CHECK(options.max_message_bytes > 0, "messages of at most {} bytes", options.max_message_bytes);
  state_->comm = detail::duplicate_for_hosts(comm, name);
  state_->options = options;
  state_->find_max_tag();
}

PointToPoint::~PointToPoint() {
  const bool unwinding = std::uncaught_exceptions() > 0;
  std::string problem = "not all that was sent has been received";
  try {
    if (state_->close_within(unwinding ? 0.0 : state_->options.farewell_s)) {
      return;
    }
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!unwinding) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("link {} closes early: {}", state_->comm.name(), problem));
  }
  (void)state_.release();  // MPI may still use the buffers, so they have to stay until the process ends
}

int PointToPoint::rank() const {
  return state_->comm.rank();
}

int PointToPoint::size() const {
  return state_->comm.size();
}

int PointToPoint::max_tag() const {
  return state_->max_tag;
}

PointToPoint::Ticket PointToPoint::send(int target, int tag, ByteBuffer bytes) {
  const Ticket ticket = state_->add(Direction::send, target, tag, std::move(bytes));
  if (target == rank()) {
    state_->self_sends[tag].push_back(ticket);
    state_->transfers.at(ticket).messages_left = 1;
    state_->meet_self(tag);
  } else {
    state_->start(ticket);
  }
  return ticket;
}

PointToPoint::Ticket PointToPoint::receive(int source, int tag, ByteBuffer into) {
  const Ticket ticket = state_->add(Direction::receive, source, tag, std::move(into));
  if (source == rank()) {
    state_->self_receives[tag].push_back(ticket);
    state_->transfers.at(ticket).messages_left = 1;
    state_->meet_self(tag);
  } else {
    state_->start(ticket);
  }
  return ticket;
}

void PointToPoint::progress() {
  state_->progress();
}

bool PointToPoint::is_done(Ticket ticket) const {
  const auto found = state_->transfers.find(ticket);
  ATHANOR_CHECK(found != state_->transfers.end(), "ticket {} is not known", ticket);
  return found->second.messages_left == 0;
}

ByteBuffer PointToPoint::take(Ticket ticket) {
  ATHANOR_CHECK(is_done(ticket), "ticket {} is taken while its bytes are under way", ticket);
  auto node = state_->transfers.extract(ticket);
  Transfer& transfer = node.mapped();
  if (!transfer.problem.empty()) {
    throw base::CommError("{} (a message {} rank {} with tag {}) check that both ends run the same program",
                          transfer.problem, transfer.direction == Direction::send ? "to" : "from",
                          transfer.peer, transfer.tag);
  }
  if (transfer.direction == Direction::receive) {
    transfer.bytes.resize(static_cast<std::size_t>(transfer.arrived));
  }
  return std::move(transfer.bytes);
}

bool PointToPoint::wait_until(const std::function<bool()>& is_ready, double deadline_s) {
  const base::ScopedSpan span(base::SpanKind::wait, "wait for messages");
  const base::Stopwatch watch;
  for (int looks = 0;; ++looks) {
    state_->progress();
    if (is_ready()) {
      return true;
    }
    if (watch.seconds() >= deadline_s) {
      return false;
    }
    if (looks < looks_before_sleep) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(pause_between_looks);
    }
  }
}

std::int64_t PointToPoint::num_under_way() const {
  return state_->under_way;
}

}  // namespace athanor::parallel
