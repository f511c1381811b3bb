#include "app/bench_figures.hpp"

#include <fmt/format.h>

#include <cmath>

#include "app/commands.hpp"

namespace athanor::app {
namespace {

// Four digits that say something, never in exponents.
std::string digits(double value) {
  const double size = std::abs(value);
  const int decimals = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return fmt::format("{:.{}f}", value, decimals);
}

}  // namespace

std::string to_text(const std::vector<BenchFigure>& figures) {
  std::string text = fmt::format("{:<48} {:>9} {:>9} {:<9} {:<22} {:>6} (smallest to largest)\n", "figure",
                                 "", "limit", "", "", "ratio");
  for (const BenchFigure& figure : figures) {
    text += fmt::format("{:<48} {:>9} {:>9} {:<9} {:<22} {:>6.3f} ({:.3f} to {:.3f})\n", figure.name,
                        digits(figure.figure), digits(figure.limit), figure.unit, figure.limit_name,
                        figure.ratio.median, figure.ratio.min, figure.ratio.max);
  }
  return text;
}

nlohmann::json to_json(const std::vector<BenchFigure>& figures) {
  nlohmann::json json = nlohmann::json::array();
  for (const BenchFigure& figure : figures) {
    nlohmann::json entry = {{"name", figure.name}, {"unit", figure.unit}, {"limit_name", figure.limit_name}};
    put_number(entry, "figure", figure.figure);
    put_number(entry, "limit", figure.limit);
    put_spread(entry, "ratio", figure.ratio);
    json.push_back(std::move(entry));
  }
  return json;
}

void put_spread(nlohmann::json& json, const std::string& name, const train::Spread& spread) {
  put_number(json, name, spread.median);
  put_number(json, name + "_min", spread.min);
  put_number(json, name + "_max", spread.max);
}

}  // namespace athanor::app
