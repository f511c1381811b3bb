#include "distill/schedules.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include "base/error.hpp"

namespace athanor::distill {

double WeightSchedule::at(std::int64_t step) const {
  if (step < warmup_steps) {
    return base * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  return base * std::pow(decay, static_cast<double>((step - warmup_steps) / period_steps));
}

void validate(const WeightSchedule& schedule, const std::string& term) {
  if (!(std::isfinite(schedule.base) && schedule.base >= 0.0)) {
    throw base::ConfigError("the weight {} of {} is out of range (it is a factor of a loss) give 0 or more",
                            schedule.base, term);
  }
  if (!(schedule.decay > 0.0 && schedule.decay <= 1.0)) {
    throw base::ConfigError(
        "the decay {} of the weight of {} is out of range (it is a factor per period) give a "
        "number above 0 and at most 1",
        schedule.decay, term);
  }
  if (schedule.warmup_steps < 0 || schedule.period_steps < 1) {
    throw base::ConfigError(
        "the weight of {} has {} warm-up steps and a period of {} (these are numbers of steps) give 0 or "
        "more and 1 "
        "or more",
        term, schedule.warmup_steps, schedule.period_steps);
  }
}

double AlphaSchedule::at(double progress) const {
  const double p = std::clamp(progress, 0.0, 1.0);
  switch (kind) {
    case AlphaKind::constant:
      return first;
    case AlphaKind::linear:
      return first + (last - first) * p;
    case AlphaKind::cosine:
      return last + (first - last) * 0.5 * (1.0 + std::cos(std::numbers::pi * p));
    case AlphaKind::wsd:
      if (p < 0.1) {
        return first * p / 0.1;
      }
      return p < 0.8 ? first : first + (last - first) * (p - 0.8) / 0.2;
  }
  throw base::InternalError("unknown schedule of alpha {}", static_cast<int>(kind));
}

void validate(const AlphaSchedule& schedule) {
  for (const double alpha : {schedule.first, schedule.last}) {
    if (!(alpha >= 0.0 && alpha <= 1.0)) {
      throw base::ConfigError(
          "the alpha {} is out of range (it is the teacher's share of the loss) give 0 to 1", alpha);
    }
  }
}

double TemperatureSchedule::at(std::int64_t step) const {
  if (period_steps == 0) {
    return std::max(first, minimum);
  }
  return std::max(first + step_change * static_cast<double>(step / period_steps), minimum);
}

double TemperatureSchedule::at(std::int64_t step, const std::string& domain) const {
  const auto own = by_domain.find(domain);
  return own == by_domain.end() ? at(step) : own->second;
}

std::vector<double> TemperatureSchedule::in_use(std::int64_t step,
                                                const std::vector<std::string>& domains) const {
  std::set<double> temperatures;
  for (const std::string& domain : domains) {
    temperatures.insert(at(step, domain));
  }
  if (domains.empty()) {
    temperatures.insert(at(step));
  }
  return {temperatures.begin(), temperatures.end()};
}

void add_temperatures(std::vector<double>& temperatures, const std::vector<double>& more) {
  temperatures.insert(temperatures.end(), more.begin(), more.end());
  std::sort(temperatures.begin(), temperatures.end());
  temperatures.erase(std::unique(temperatures.begin(), temperatures.end()), temperatures.end());
}

void validate(const TemperatureSchedule& schedule) {
  if (!(std::isfinite(schedule.minimum) && schedule.minimum > 0.0)) {
    throw base::ConfigError(
        "distill.temperature_min = {} is out of range (logits are divided by it) give a number "
        "above 0",
        schedule.minimum);
  }
  const auto check = [&](const std::string& what, double temperature) {
    if (!(std::isfinite(temperature) && temperature >= schedule.minimum)) {
      throw base::ConfigError(
          "the temperature {}{} is out of range (it never goes below distill.temperature_min = {}) raise it "
          "or "
          "lower the minimum",
          temperature, what, schedule.minimum);
    }
  };
  check("", schedule.first);
  for (const auto& [domain, temperature] : schedule.by_domain) {
    check(" of domain " + domain, temperature);
  }
  if (schedule.period_steps < 0 || !std::isfinite(schedule.step_change)) {
    throw base::ConfigError(
        "distill.temperature_period = {} is out of range (it is a number of steps) give 0 (constant) "
        "or more",
        schedule.period_steps);
  }
}

}  // namespace athanor::distill
