// A student's signals kept in memory, to be served again without a teacher.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "distill/link/signal_source.hpp"

namespace athanor::train {

/// Passes the calls on to a live source; keeps a copy of one step's fields and serves that from then on when
/// told to.
class ReplaySource final : public distill::SignalSource {
 public:
  explicit ReplaySource(std::unique_ptr<distill::SignalSource> live);

  /// The next step that is waited for is kept.
  void record_next_step() { records_next_ = true; }
  /// true: steps are the kept one, at once, from memory; false: those of the live source. Between steps.
  void replay(bool on);

  const distill::ReceivedStep& wait_step(std::int64_t step, const distill::RowTags& own_rows) override;
  distill::StepOutcome wait_trailer(std::int64_t step) override;
  void release(std::int64_t step) override;
  void progress() override { live_->progress(); }
  /// Of the live source; nothing while it replays.
  const distill::SourceStats& stats() const override { return replays_ ? no_stats_ : live_->stats(); }

 private:
  void keep(const distill::ReceivedStep& step);

  std::unique_ptr<distill::SignalSource> live_;
  bool records_next_ = false;
  bool replays_ = false;
  distill::ReceivedStep kept_;
  std::vector<std::vector<std::byte>> bytes_;  // of kept_'s fields
  distill::SourceStats no_stats_;
};

}  // namespace athanor::train
