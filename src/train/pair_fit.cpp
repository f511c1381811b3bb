#include "train/pair_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

namespace athanor::train {
namespace {

constexpr std::size_t tail_steps = 10;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double mean(const std::deque<double>& values) {
  return values.empty()
             ? std::numeric_limits<double>::quiet_NaN()
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void push(std::deque<double>& values, double value) {
  values.push_back(value);
  if (values.size() > tail_steps) {
    values.pop_front();
  }
}

double figure(const StepMetrics& metrics, const char* name, double otherwise) {
  const auto found = metrics.figures.find(name);
  return found == metrics.figures.end() ? otherwise : found->second;
}

}  // namespace

double PairFigures::pace_ratio() const {
  constexpr double shortest_s = 1e-9;  // of clocks that did not tick
  return steps == 0 ? 1.0 : std::max(step_s / std::max(busy_s(), shortest_s), 1.0);
}

PairFit::PairFit(PairFitOptions options) : options_(std::move(options)) {}

void PairFit::add(const StepMetrics& metrics) {
  if (seen_ == 1) {  // the first one was not like the others
    sums_ = {};
  }
  ++seen_;
  const Pace pace{metrics.times.total_s, figure(metrics, "link_wait_s", 0.0)};
  sums_.steps += 1;
  sums_.step_s += pace.total_s;
  sums_.wait_s += pace.wait_s;
  sums_.link_bytes += figure(metrics, "link_bytes", 0.0);
  push(losses_, metrics.loss);
  push(teacher_losses_, figure(metrics, "teacher_loss", std::numeric_limits<double>::quiet_NaN()));
  const auto counted = static_cast<std::int64_t>(early_.size());
  if (seen_ > 1 && counted < options_.after_steps) {
    early_.push_back(pace);
    if (counted + 1 == options_.after_steps) {
      const PairFigures early = early_figures();
      if (!judge(early) && options_.inform) {
        options_.inform(describe(early));
      }
    }
  }
}

void PairFit::finish() {
  if (const PairFigures all = figures(); all.steps >= fewest_paced_steps) {
    judge(all);
  }
}

PairFigures PairFit::figures() const {
  PairFigures figures = sums_;
  const auto steps = static_cast<double>(std::max<std::int64_t>(sums_.steps, 1));
  figures.step_s /= steps;
  figures.wait_s /= steps;
  figures.link_bytes /= steps;
  figures.loss = mean(losses_);
  figures.teacher_loss = mean(teacher_losses_);
  return figures;
}

// Medians: one long step (a save, an evaluation of the other side) is no pace.
PairFigures PairFit::early_figures() const {
  std::vector<double> totals;
  std::vector<double> busy;
  for (const Pace& pace : early_) {
    totals.push_back(pace.total_s);
    busy.push_back(pace.total_s - pace.wait_s);
  }
  PairFigures figures;
  figures.steps = static_cast<std::int64_t>(early_.size());
  figures.step_s = median(std::move(totals));
  figures.wait_s = std::max(figures.step_s - median(std::move(busy)), 0.0);
  return figures;
}

std::string PairFit::describe(const PairFigures& figures) const {
  const bool is_student = options_.kind == parallel::RoleKind::student;
  return fmt::format("works {:.3g} s of a step of {:.3g} s and waits {:.0f} % of it for {}", figures.busy_s(),
                     figures.step_s, 100.0 * figures.wait_share(), is_student ? "the teacher" : "students");
}

bool PairFit::judge(const PairFigures& figures) {
  const bool is_student = options_.kind == parallel::RoleKind::student;
  const bool is_bad = figures.pace_ratio() > widest_pace_ratio;
  if (is_bad && !has_warned_ && options_.warn) {
    has_warned_ = true;
    options_.warn(fmt::format(
        "{}: {} {:.1f} times as long for a step (more than {:.0f}: these ranks are idle most of the time) {} "
        "({})",
        describe(figures), is_student ? "the teacher takes" : "a student takes", figures.pace_ratio(),
        widest_pace_ratio,
        is_student ? "give the teacher more ranks and this student fewer, or freeze the teacher"
                   : "give the students more ranks and the teacher fewer",
        options_.ranks));
  }
  return is_bad;
}

}  // namespace athanor::train
