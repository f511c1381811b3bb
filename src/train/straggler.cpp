#include "train/straggler.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>

#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::train {
namespace {

using base::SpanKind;

constexpr std::int8_t nobody = -1;
constexpr std::int8_t data_phase = 0;
constexpr std::int8_t other_phase = num_straggler_phases - 1;

// The phase to which a span charges its time; `outer` when it says nothing of that.
std::int8_t phase_of(const base::Span& span, std::int8_t outer) {
  if (outer == nobody || span.kind == SpanKind::collective) {
    return nobody;
  }
  if (span.kind == SpanKind::wait) {
    return span.name == straggler_phases[data_phase] ? data_phase : nobody;  // data is each rank's own affair
  }
  if (span.kind != SpanKind::phase) {
    return outer;
  }
  if (span.name == "evaluation" || span.name == "checkpoint") {
    return nobody;
  }
  const auto* const found = std::find(straggler_phases.begin(), straggler_phases.end(), span.name);
  return found == straggler_phases.end() ? outer : static_cast<std::int8_t>(found - straggler_phases.begin());
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) {
    return *middle;
  }
  return 0.5 * (*middle + *std::max_element(values.begin(), middle));
}

double total(const PhaseTimes& times) {
  return std::accumulate(times.begin(), times.end(), 0.0);
}

template <typename Times, typename Value>
double median_of(const Times& times, const Value& value) {
  std::vector<double> values;
  values.reserve(times.size());
  for (const PhaseTimes& one : times) {
    values.push_back(value(one));
  }
  return median(std::move(values));
}

// The median step of a window, by phase, such that the sum is the median total.
PhaseTimes median_step(const std::deque<PhaseTimes>& steps) {
  PhaseTimes medians{};
  for (std::size_t p = 0; p < medians.size(); ++p) {
    medians[p] = median_of(steps, [p](const PhaseTimes& step) { return step[p]; });
  }
  const double sum = total(medians);
  const double whole = median_of(steps, total);
  medians[static_cast<std::size_t>(other_phase)] += whole - sum;
  return medians;
}

std::string_view worst_phase(const std::vector<PhaseTimes>& times, std::size_t rank) {
  std::size_t worst = 0;
  double most_s = 0.0;
  for (std::size_t p = 0; p < num_straggler_phases; ++p) {
    const double lost_s = times[rank][p] - median_of(times, [p](const PhaseTimes& one) { return one[p]; });
    if (p == 0 || lost_s > most_s) {
      worst = p;
      most_s = lost_s;
    }
  }
  return straggler_phases[worst];
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

OwnTime::OwnTime() : thread_(std::this_thread::get_id()) {}

void OwnTime::charge() noexcept {
  const Clock::time_point now = Clock::now();
  const std::int8_t phase = depth_ == 0 ? other_phase : open_[std::min(depth_, max_depth) - 1];
  if (phase != nobody) {
    times_[static_cast<std::size_t>(phase)] += std::chrono::duration<double>(now - last_).count();
  }
  last_ = now;
}

void OwnTime::begin(const base::Span& span) noexcept {
  if (std::this_thread::get_id() != thread_) {
    return;
  }
  charge();
  if (depth_ < max_depth) {
    open_[depth_] = phase_of(span, depth_ == 0 ? other_phase : open_[depth_ - 1]);
  }
  ++depth_;
}

void OwnTime::end(const base::Span& /*span*/) noexcept {
  if (std::this_thread::get_id() != thread_) {
    return;
  }
  charge();
  depth_ -= depth_ > 0 ? 1 : 0;
}

PhaseTimes OwnTime::take() {
  charge();
  return std::exchange(times_, PhaseTimes{});
}

std::vector<StragglerScore> compare_times(const std::vector<PhaseTimes>& times,
                                          const StragglerOptions& options) {
  // The other ranks' median, so that of two ranks a slow one is seen as well.
  std::vector<StragglerScore> scores;
  for (std::size_t r = 0; r < times.size(); ++r) {
    std::vector<double> others;
    for (std::size_t other = 0; other < times.size(); ++other) {
      if (other != r) {
        others.push_back(total(times[other]));
      }
    }
    StragglerScore score;
    score.rank = static_cast<int>(r);
    score.own_s = total(times[r]);
    score.median_s = others.empty() ? score.own_s : median(others);
    score.score = score.own_s > 0 ? score.median_s / score.own_s : 1.0;
    score.phase = worst_phase(times, r);
    score.is_straggler = score.score < options.score && score.own_s - score.median_s >= options.least_s;
    scores.push_back(score);
  }
  std::stable_sort(scores.begin(), scores.end(),
                   [](const StragglerScore& a, const StragglerScore& b) { return a.score < b.score; });
  scores.erase(std::remove_if(scores.begin() + (scores.empty() ? 0 : 1), scores.end(),
                              [](const StragglerScore& score) { return !score.is_straggler; }),
               scores.end());
  return scores;
}

StragglerWatch::StragglerWatch(const StragglerOptions& options, const parallel::Communicator& role)
    : options_(options), hosts_(parallel::all_gather_strings(host_name(), role)) {}

void StragglerWatch::note_step() {
  steps_.push_back(own_.take());
  if (static_cast<std::int64_t>(steps_.size()) > options_.window) {
    steps_.pop_front();
  }
}

std::vector<StragglerScore> StragglerWatch::compare(const parallel::Communicator& role) {
  if (options_.score == 0 || role.size() == 1 ||
      static_cast<std::int64_t>(steps_.size()) < options_.min_steps) {
    return {};
  }
  const PhaseTimes own = median_step(steps_);
  at::Tensor mine = at::empty({static_cast<std::int64_t>(own.size())}, at::kDouble);
  std::copy(own.begin(), own.end(), mine.mutable_data_ptr<double>());
  const at::Tensor all = parallel::all_gather(mine, role, parallel::Traffic::other);
  std::vector<PhaseTimes> times(static_cast<std::size_t>(role.size()));
  for (std::size_t r = 0; r < times.size(); ++r) {
    std::copy_n(all.const_data_ptr<double>() + r * own.size(), own.size(), times[r].begin());
  }
  std::vector<StragglerScore> scores = compare_times(times, options_);
  for (const StragglerScore& score : scores) {
    if (score.is_straggler && role.rank() == 0) {
      base::log_local(
          base::LogLevel::warning,
          fmt::format("STRAGGLER: rank {} of the role (host {}) takes {:.3f} s of its own for a step, "
                      "{:.1f} times the others' {:.3f} s; most is lost in: {}",
                      score.rank, hosts_[static_cast<std::size_t>(score.rank)], score.own_s,
                      1.0 / score.score, score.median_s, score.phase));
    }
  }
  return scores;
}

}  // namespace athanor::train
