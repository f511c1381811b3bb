// How every benchmark prints what it found: a figure, its limit in the same run, their ratio and its spread.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "train/bench_support.hpp"

namespace athanor::app {

/// One measured figure beside what bounds it; medians over rounds.
struct BenchFigure {
  std::string name;
  std::string unit;  ///< of figure and limit: "tokens/s", "MB/s", "ms"
  double figure = 0.0;
  std::string limit_name;  ///< "GEMM limit"
  double limit = 0.0;
  train::Spread ratio;  ///< of each round's figure to its limit
};

/// A table of lines "name: figure unit, limit, ratio (smallest to largest)".
std::string to_text(const std::vector<BenchFigure>& figures);
/// An array of objects with name, unit, figure, limit_name, limit, ratio, ratio_min, ratio_max.
nlohmann::json to_json(const std::vector<BenchFigure>& figures);

/// Sets name, name_min and name_max.
void put_spread(nlohmann::json& json, const std::string& name, const train::Spread& spread);

}  // namespace athanor::app
