// The trials of a search for the temperature: short runs that differ in nothing else.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// The highest temperature that a search tries; the lowest is distill.temperature_min.
inline constexpr double highest_trial_temperature = 8.0;

/// distill.trials temperatures from distill.temperature_min to the highest in equal ratios, both ends
/// included, rounded to four decimals.
std::vector<double> trial_temperatures(const RunConfig& config);

/// "07" for the seventh trial (index 6).
std::string trial_name(std::size_t index);

/// The configuration of trial `index` of the search: constant temperature, distill.trial_steps steps, one
/// evaluation at the end, in <run.dir>/trials/NN.
RunConfig make_trial(const RunConfig& config, std::size_t index);

/// Throws ConfigError for a search that could not rank anything; nothing without distill.search.
void validate_search(const RunConfig& config);

}  // namespace athanor::config
