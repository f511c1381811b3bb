#include "train/bench_stream/replay_source.hpp"

#include <utility>

#include "base/error.hpp"

namespace athanor::train {

ReplaySource::ReplaySource(std::unique_ptr<distill::SignalSource> live) : live_(std::move(live)) {}

void ReplaySource::replay(bool on) {
  ATHANOR_CHECK(!on || !bytes_.empty(), "a replay without a recording");
  replays_ = on;
}

void ReplaySource::keep(const distill::ReceivedStep& step) {
  kept_ = step;
  bytes_.clear();
  for (distill::ReceivedField& field : kept_.fields) {
    bytes_.emplace_back(field.bytes.begin(), field.bytes.end());
  }
  for (std::size_t i = 0; i < bytes_.size(); ++i) {
    kept_.fields[i].bytes = bytes_[i];
  }
}

const distill::ReceivedStep& ReplaySource::wait_step(std::int64_t step, const distill::RowTags& own_rows) {
  if (replays_) {
    ATHANOR_CHECK(step == kept_.step, "step {} is asked for, step {} is recorded", step, kept_.step);
    return kept_;
  }
  const distill::ReceivedStep& received = live_->wait_step(step, own_rows);
  if (records_next_) {
    keep(received);
    records_next_ = false;
  }
  return received;
}

distill::StepOutcome ReplaySource::wait_trailer(std::int64_t step) {
  return replays_ ? distill::StepOutcome::finite : live_->wait_trailer(step);
}

void ReplaySource::release(std::int64_t step) {
  if (!replays_) {
    live_->release(step);
  }
}

}  // namespace athanor::train
