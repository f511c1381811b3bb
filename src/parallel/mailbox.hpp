// Small messages between ranks that nobody waits for: reports, verdicts, signals.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "parallel/communicator.hpp"

namespace athanor::parallel {

/// A message as it arrived.
struct Letter {
  int source = 0;
  int kind = 0;
  std::string bytes;
};

/// Non-blocking messages over a communicator of its own; not counted as training traffic. Messages from one
/// source of one kind arrive in order. A message to oneself arrives like any other.
class Mailbox {
 public:
  /// Duplicates `comm`. Collective over it.
  Mailbox(const Communicator& comm, const std::string& name);
  /// Call finish() first: what receivers have not taken after some seconds is given up with a warning.
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  int rank() const;
  int size() const;
  /// Keeps the bytes until they are sent and returns at once. `kind` in [0, 1000); less than 2 GiB.
  void post(int target, int kind, std::string bytes);
  /// Moves what is under way along and takes the next letter of any source; nothing when none has arrived.
  std::optional<Letter> take();
  /// Completes all sends: every receiver has to call take() or finish() meanwhile. Not collective.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::parallel
