// A barrier for ranks that wait long while others work on the same cores.
#pragma once

#include <functional>

#include "parallel/communicator.hpp"
#include "parallel/mailbox.hpp"

namespace athanor::train {

/// MPI's own barrier looks for messages without a pause and takes the core from whoever computes. Here a rank
/// that waits sleeps between two looks, for some milliseconds.
class SleepingBarrier {
 public:
  /// Collective over `world`, which outlives this object.
  explicit SleepingBarrier(const parallel::Communicator& world);

  /// Returns when all ranks have called it. `while_waiting` is called at every look. Collective.
  void wait(const std::function<void()>& while_waiting);
  /// Completes what is under way; the last call. Collective.
  void finish() { mailbox_.finish(); }

 private:
  void take_letters(int count, const std::function<void()>& while_waiting);

  parallel::Mailbox mailbox_;
};

}  // namespace athanor::train
