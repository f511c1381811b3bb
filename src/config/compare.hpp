// How a configuration differs from the one that a checkpoint was made with.
#pragma once

#include <string>
#include <vector>

#include "config/run_config.hpp"

namespace athanor::config {

/// One key with two values.
struct Difference {
  std::string key;
  std::string stored;
  std::string current;
  /// Another model or other data: the run would not be the same one. Not so: lengths, layout, rates,
  /// precision, where to write.
  bool matters = false;
};

/// The keys of `stored_ini` (text of to_ini, perhaps of another command) whose values are others now; keys
/// that only say where and how a job runs (run.dir, log and evaluation intervals, ...) are left out. Throws
/// ConfigError for text that is not INI.
std::vector<Difference> compare_with_stored(const std::string& stored_ini, const RunConfig& current);

/// A table of differences for people, one line each.
std::string describe(const std::vector<Difference>& differences);

}  // namespace athanor::config
