#include "parallel/mailbox.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <list>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "base/checked_cast.hpp"
#include "base/error.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "parallel/detail/mpi_handle.hpp"

namespace athanor::parallel {
namespace {

constexpr int max_kind = 1000;
constexpr auto pause_between_tests = std::chrono::microseconds(100);
// A destructor must end even when a receiver never takes its letters.
constexpr double farewell_s = 10.0;

// A letter on its way: MPI reads or writes `letter.bytes` until the request is done, so it never moves.
struct Transfer {
  Letter letter;
  MPI_Request request = MPI_REQUEST_NULL;
};

}  // namespace

struct Mailbox::State {
  Communicator comm;
  std::list<Transfer> sends;
  std::list<Transfer> receives;  // in the order in which MPI matched them
  std::deque<Letter> to_self;

  const detail::CommunicatorState& mpi() const { return *comm.state(); }

  bool is_done(Transfer& transfer) const {
    int done = 0;
    ATHANOR_MPI_CALL(mpi(), MPI_Test(&transfer.request, &done, MPI_STATUS_IGNORE));
    return done != 0;
  }

  void drop_sent() {
    for (auto send = sends.begin(); send != sends.end();) {
      send = is_done(*send) ? sends.erase(send) : std::next(send);
    }
  }

  // Starts receiving every letter that has arrived. Matched probes: nobody else can take the message between
  // the question for its size and its receipt.
  void start_receives() {
    while (true) {
      int arrived = 0;
      MPI_Message message = MPI_MESSAGE_NULL;
      MPI_Status status;
      ATHANOR_MPI_CALL(mpi(),
                       MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, mpi().comm, &arrived, &message, &status));
      if (arrived == 0) {
        return;
      }
      int count = 0;
      ATHANOR_MPI_CALL(mpi(), MPI_Get_count(&status, MPI_BYTE, &count));
      Transfer& transfer = receives.emplace_back();
      transfer.letter.source = status.MPI_SOURCE;
      transfer.letter.kind = status.MPI_TAG;
      transfer.letter.bytes.resize(static_cast<std::size_t>(count));
      ATHANOR_MPI_CALL(
          mpi(), MPI_Imrecv(transfer.letter.bytes.data(), count, MPI_BYTE, &message, &transfer.request));
    }
  }

  void progress() {
    if (comm.size() > 1) {
      drop_sent();
      start_receives();
    }
  }

  bool is_received() {
    return std::all_of(receives.begin(), receives.end(), [&](Transfer& receive) { return is_done(receive); });
  }

  // Letters that arrive meanwhile are received and kept, so that two ranks that both wait here let each other
  // go.
  void complete_sends() {
    for (progress(); !sends.empty(); progress()) {
      std::this_thread::sleep_for(pause_between_tests);
    }
  }

  // Whether within `seconds` all was sent, and all that had begun to arrive was received.
  bool close_within(double seconds) {
    const base::Stopwatch watch;
    for (progress(); !sends.empty() || !is_received(); progress()) {
      if (watch.seconds() >= seconds) {
        return false;
      }
      std::this_thread::sleep_for(pause_between_tests);
    }
    return true;
  }
};

Mailbox::Mailbox(const Communicator& comm, const std::string& name)
    : state_(std::make_unique<State>(State{detail::duplicate_for_hosts(comm, name), {}, {}, {}})) {}

Mailbox::~Mailbox() {
  // While an error unwinds the stack the others may never come here: the job is about to end.
  const bool unwinding = std::uncaught_exceptions() > 0;
  std::string problem = "letters were not taken by their receivers";
  try {
    if (state_->close_within(unwinding ? 0.0 : farewell_s)) {
      return;
    }
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!unwinding) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("mailbox {} closes early: {}", state_->comm.name(), problem));
  }
  (void)state_.release();  // MPI may still use the buffers, so they have to stay until the process ends
}

int Mailbox::rank() const {
  return state_->comm.rank();
}

int Mailbox::size() const {
  return state_->comm.size();
}

void Mailbox::post(int target, int kind, std::string bytes) {
  ATHANOR_CHECK(target >= 0 && target < size(), "a letter to rank {} of {}", target, size());
  ATHANOR_CHECK(kind >= 0 && kind < max_kind, "a letter of kind {}", kind);
  if (target == rank()) {
    state_->to_self.push_back(Letter{target, kind, std::move(bytes)});
    return;
  }
  const int count = base::checked_cast<int>(bytes.size(), "a letter's bytes");
  state_->drop_sent();
  Transfer& transfer = state_->sends.emplace_back();
  transfer.letter.bytes = std::move(bytes);
  const int code = MPI_Isend(transfer.letter.bytes.data(), count, MPI_BYTE, target, kind, state_->mpi().comm,
                             &transfer.request);
  if (code != MPI_SUCCESS) {
    state_->sends.pop_back();
  }
  ATHANOR_MPI_CALL(state_->mpi(), code /* MPI_Isend */);
}

std::optional<Letter> Mailbox::take() {
  state_->progress();
  if (!state_->to_self.empty()) {
    Letter letter = std::move(state_->to_self.front());
    state_->to_self.pop_front();
    return letter;
  }
  // In the order of arrival, so that a long letter is not overtaken by a later one of its sender.
  if (state_->receives.empty() || !state_->is_done(state_->receives.front())) {
    return std::nullopt;
  }
  Letter letter = std::move(state_->receives.front().letter);
  state_->receives.pop_front();
  return letter;
}

void Mailbox::finish() {
  state_->complete_sends();
}

}  // namespace athanor::parallel
