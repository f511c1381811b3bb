#include "train/bench_stream/sleeping_barrier.hpp"

#include <chrono>
#include <thread>

namespace athanor::train {
namespace {

constexpr int here_kind = 0;
constexpr auto pause_between_looks = std::chrono::milliseconds(2);

}  // namespace

SleepingBarrier::SleepingBarrier(const parallel::Communicator& world) : mailbox_(world, "turns") {}

void SleepingBarrier::take_letters(int count, const std::function<void()>& while_waiting) {
  while (count > 0) {
    if (mailbox_.take()) {
      --count;
      continue;
    }
    while_waiting();
    std::this_thread::sleep_for(pause_between_looks);
  }
}

// Everyone tells rank 0, which tells everyone. Nobody can be a round ahead: it would have to have been told.
void SleepingBarrier::wait(const std::function<void()>& while_waiting) {
  if (mailbox_.rank() != 0) {
    mailbox_.post(0, here_kind, "");
    take_letters(1, while_waiting);
    return;
  }
  take_letters(mailbox_.size() - 1, while_waiting);
  for (int rank = 1; rank < mailbox_.size(); ++rank) {
    mailbox_.post(rank, here_kind, "");
  }
}

}  // namespace athanor::train
