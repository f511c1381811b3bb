#include "train/stop_request.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "base/signal_flag.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/mailbox.hpp"

namespace athanor::train {
namespace {

constexpr double safety_factor = 1.5;
constexpr std::size_t num_recent_steps = 100;
constexpr int stop_letter = 0;

double seconds_until(std::int64_t end_time) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(end_time) - now.count();
}

}  // namespace

void TimeEstimate::note_step(double seconds) {
  recent_steps_s_.push_back(seconds);
  if (recent_steps_s_.size() > num_recent_steps) {
    recent_steps_s_.pop_front();
  }
}

void TimeEstimate::note_save(double seconds) {
  longest_save_s_ = std::max(longest_save_s_, seconds);
}

double TimeEstimate::seconds_for(std::int64_t steps) const {
  const auto longest = std::max_element(recent_steps_s_.begin(), recent_steps_s_.end());
  const double step_s = longest == recent_steps_s_.end() ? 0.0 : *longest;
  return safety_factor * (static_cast<double>(steps) * step_s + longest_save_s_);
}

StopRequest::StopRequest(const StopOptions& options, const parallel::Communicator& world,
                         const parallel::Communicator& role)
    : options_(options), is_only_role_(role.size() == world.size()), world_rank_(world.rank()) {
  if (!is_only_role_) {
    leads_ = parallel::all_reduce_max(std::int64_t{world.rank() == 0 ? 1 : 0}, role) > 0;
    letters_ = std::make_unique<parallel::Mailbox>(world, "stop");
  }
}

StopRequest::~StopRequest() = default;

// Why to stop now, or "".
std::string StopRequest::look_around() {
  if (const int signal = base::stop_signal(); signal != 0) {
    return base::signal_name(signal);
  }
  if (options_.end_time > 0) {
    const double left_s = seconds_until(options_.end_time);
    const double needed_s = options_.margin_s + times_.seconds_for(options_.steps_ahead);
    if (left_s < needed_s) {
      return fmt::format(
          "{:.0f} s are left until run.end_time, more steps and a checkpoint may take {:.0f} s",
          std::max(left_s, 0.0), needed_s);
    }
  }
  if (letters_ && world_rank_ == 0) {
    if (const std::optional<parallel::Letter> letter = letters_->take()) {
      return fmt::format("rank {}: {}", letter->source, letter->bytes);
    }
  }
  return "";
}

bool StopRequest::is_wanted() {
  if (reason_.empty()) {
    reason_ = look_around();
    if (!reason_.empty() && letters_ && !leads_) {
      letters_->post(0, stop_letter, reason_);
    }
  }
  if (letters_ && !reason_.empty()) {
    letters_->take();  // moves letters along; those that come late say nothing new
  }
  return !reason_.empty();
}

bool StopRequest::agree(const parallel::Communicator& comm) {
  return parallel::all_reduce_max(std::int64_t{is_wanted() ? 1 : 0}, comm) > 0;
}

std::string StopRequest::conclude(bool stopped, const parallel::Communicator& world) {
  constexpr const char* unknown = "?";  // stopped because another rank wanted it
  const std::string mine = !stopped ? "" : reason_.empty() ? unknown : reason_;
  const std::vector<std::string> reasons = parallel::all_gather_strings(mine, world);
  if (letters_) {
    letters_->finish();
  }
  std::string first;
  for (std::size_t rank = 0; rank < reasons.size(); ++rank) {
    if (!reasons[rank].empty() && (first.empty() || first == unknown)) {
      first = rank == 0 || reasons[rank] == unknown ? reasons[rank]
                                                    : fmt::format("rank {}: {}", rank, reasons[rank]);
    }
  }
  return first;
}

}  // namespace athanor::train
