// How the weights, the temperature and the share of the teacher change over a run: pure functions of the
// step.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace athanor::distill {

/// Weight of one term: base * (step + 1) / warmup_steps during warm-up, then base * decay^n after n whole
/// periods.
struct WeightSchedule {
  double base = 1.0;
  double decay = 1.0;  ///< factor per period, in (0, 1]
  std::int64_t warmup_steps = 0;
  std::int64_t period_steps = 1;  ///< steps of one decay

  double at(std::int64_t step) const;
};
/// Throws ConfigError naming `term` when a number is out of range.
void validate(const WeightSchedule& schedule, const std::string& term);

enum class AlphaKind { constant, linear, cosine, wsd };

/// The teacher's share a of L = (1 - a) CE + a KD. `progress` is the share of the steps that is behind, in
/// [0, 1].
///   constant  first
///   linear    first + (last - first) progress
///   cosine    last + (first - last) (1 + cos(pi progress)) / 2
///   wsd       warm-up from 0 to first over the first tenth, then first, then linear to last over the last
///   fifth
struct AlphaSchedule {
  AlphaKind kind = AlphaKind::linear;
  double first = 0.9;
  double last = 0.5;

  double at(double progress) const;
};
/// Throws ConfigError unless both ends are in [0, 1].
void validate(const AlphaSchedule& schedule);

/// T: constant, or first + step_change after each period of steps; a domain of the data may have one of its
/// own instead. Never below `minimum`.
struct TemperatureSchedule {
  double first = 5.0;
  double step_change = -0.5;      ///< added after each period; 0: constant
  std::int64_t period_steps = 0;  ///< 0: constant
  double minimum = 1.0;
  std::map<std::string, double> by_domain{};  ///< domain name -> its constant temperature

  /// Of tokens without a domain of their own.
  double at(std::int64_t step) const;
  double at(std::int64_t step, const std::string& domain) const;
  /// The distinct temperatures in use at a step for the given domains, in ascending order: what a signal must
  /// serve.
  std::vector<double> in_use(std::int64_t step, const std::vector<std::string>& domains) const;
};
/// `temperatures` and `more`, each once, ascending.
void add_temperatures(std::vector<double>& temperatures, const std::vector<double>& more);
/// Throws ConfigError when a temperature is below `minimum`, `minimum` is not positive, or a period is
/// negative.
void validate(const TemperatureSchedule& schedule);

}  // namespace athanor::distill
