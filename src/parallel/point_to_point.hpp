// Byte buffers from rank to rank that nobody waits for: both ends know size and tag of every message before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "parallel/communicator.hpp"
#include "parallel/traffic.hpp"

namespace athanor::parallel {

/// A move-only array of bytes, not initialised, so that large ones cost nothing before they are filled.
class ByteBuffer {
 public:
  ByteBuffer() = default;
  explicit ByteBuffer(std::size_t size)
      : bytes_(size == 0 ? nullptr : std::make_unique_for_overwrite<std::byte[]>(size)),
        size_(size),
        capacity_(size) {}
  std::byte* data() noexcept { return bytes_.get(); }
  const std::byte* data() const noexcept { return bytes_.get(); }
  std::size_t size() const noexcept { return size_; }
  std::size_t capacity() const noexcept { return capacity_; }
  /// Changes the size without touching the bytes; not beyond the capacity.
  void resize(std::size_t size);

 private:
  std::unique_ptr<std::byte[]> bytes_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

struct PointToPointOptions {
  Traffic traffic = Traffic::link;                         ///< as what sent bytes are counted
  std::int64_t max_message_bytes = std::int64_t{1} << 30;  ///< longer buffers travel as several messages
  double farewell_s = 10.0;  ///< how long the destructor waits for what is under way
};

/// Non-blocking sends and receives over a communicator of its own. Messages of one source with one tag match
/// receives in the order in which these were posted. It owns the buffers while they are under way, so that an
/// error elsewhere never leaves MPI with memory that is gone. Nothing moves unless somebody calls progress().
class PointToPoint {
 public:
  /// Names a send or receive of this object.
  using Ticket = std::int64_t;

  /// Duplicates `comm`; with a null one the only rank sends to itself. Collective over it.
  PointToPoint(const Communicator& comm, const std::string& name, const PointToPointOptions& options = {});
  /// Cancels the receives that nobody answered and waits a while for the rest; what is not done then stays in
  /// memory until the process ends, with a warning. No waiting while an error unwinds the stack.
  ~PointToPoint();
  PointToPoint(const PointToPoint&) = delete;
  PointToPoint& operator=(const PointToPoint&) = delete;

  int rank() const;
  int size() const;
  /// Largest tag (tags start at 0).
  int max_tag() const;

  /// Starts sending and returns at once.
  Ticket send(int target, int tag, ByteBuffer bytes);
  /// Starts receiving up to `into.size()` bytes and returns at once. Agree on sizes before: Open MPI 4.1
  /// writes behind the buffer when a long message (one that it copies from process to process) does not fit.
  Ticket receive(int source, int tag, ByteBuffer into);
  /// Moves everything that is under way along. Throws CommError when MPI fails as a whole.
  void progress();
  /// Whether it had ended when progress() was last called, well or not.
  bool is_done(Ticket ticket) const;
  /// The buffer of a transfer that is done; of a receive, with the size that arrived. Forgets the ticket.
  /// Throws CommError when this transfer failed.
  ByteBuffer take(Ticket ticket);
  /// Calls progress() until `is_ready()` holds, giving the processor away in between, for at most
  /// `deadline_s`. Returns whether it held.
  bool wait_until(const std::function<bool()>& is_ready, double deadline_s);
  /// Transfers that have not ended.
  std::int64_t num_under_way() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::parallel
