// `athanor bench collectives`.
#include "train/bench_collectives.hpp"

#include <fmt/format.h>

#include <fstream>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "base/error.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

std::string size_text(std::int64_t bytes) {
  if (bytes >= 1024 * 1024) {
    return fmt::format("{:.4g} MiB", static_cast<double>(bytes) / (1024 * 1024));
  }
  return bytes >= 1024 ? fmt::format("{:.4g} KiB", static_cast<double>(bytes) / 1024)
                       : fmt::format("{} B", bytes);
}

double gigabytes_per_s(const train::CollectiveCase& measured, double seconds) {
  return static_cast<double>(measured.moved_bytes) / seconds / 1e9;
}

// What the table chooses against the copy.
std::vector<BenchFigure> figures_of(const std::vector<train::CollectiveCase>& cases) {
  std::vector<BenchFigure> figures;
  for (const train::CollectiveCase& measured : cases) {
    const train::AlgorithmTime& chosen = measured.algorithms[measured.chosen()];
    figures.push_back({fmt::format("{}, {}, {}", measured.name, size_text(measured.bytes), chosen.name),
                       "GB/s", gigabytes_per_s(measured, chosen.seconds.median), "memory copy",
                       gigabytes_per_s(measured, measured.copy_s.median), chosen.ratio});
  }
  return figures;
}

nlohmann::json to_json(const train::CollectiveCase& measured) {
  nlohmann::json json = {{"operation", measured.name},
                         {"bytes", measured.bytes},
                         {"moved_bytes", measured.moved_bytes},
                         {"chosen", measured.algorithms[measured.chosen()].name},
                         {"best", measured.algorithms[measured.best()].name},
                         {"algorithms", nlohmann::json::array()}};
  put_spread(json, "copy_s", measured.copy_s);
  for (const train::AlgorithmTime& time : measured.algorithms) {
    nlohmann::json entry = {{"name", time.name}, {"may_be_chosen", time.algorithm.has_value()}};
    put_spread(entry, "seconds", time.seconds);
    put_number(entry, "bytes_per_s", static_cast<double>(measured.moved_bytes) / time.seconds.median);
    put_spread(entry, "ratio", time.ratio);
    json["algorithms"].push_back(std::move(entry));
  }
  return json;
}

std::string to_text(const train::CollectiveCase& measured) {
  std::string text;
  for (std::size_t i = 0; i < measured.algorithms.size(); ++i) {
    const train::AlgorithmTime& time = measured.algorithms[i];
    const bool is_best = i == measured.best();
    const char* mark = time.is_chosen ? (is_best ? "chosen, best" : "chosen") : is_best ? "best" : "";
    text += fmt::format(
        "{:<18} {:>9} {:<14} {:>10.2f} us ({:.2f} to {:.2f}) {:>8.3f} GB/s, ratio {:.3f} ({:.3f} to {:.3f}) "
        "{}\n",
        measured.name, size_text(measured.bytes), time.name, time.seconds.median * 1e6,
        time.seconds.min * 1e6, time.seconds.max * 1e6, gigabytes_per_s(measured, time.seconds.median),
        time.ratio.median, time.ratio.min, time.ratio.max, mark);
  }
  return text;
}

void write_table(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text << std::flush;
  if (!file) {
    throw base::CannotCreateError(
        "bench.table={} cannot be written (the folder is missing or not yours) choose another place", path);
  }
}

}  // namespace

CommandResult run_bench_collectives(const config::RunConfig& config, const parallel::Communicator& world) {
  const config::BenchSection& bench = config.bench;
  if (world.size() == 1) {
    throw base::ConfigError(
        "bench collectives was started on one rank (there is nobody to exchange with) start it on 2 ranks or "
        "more");
  }
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0 && !bench.table.empty()) {
      write_table(bench.table, "");  // refused before the work rather than after it
    }
  });
  const std::vector<train::CollectiveCase> cases =
      train::bench_collectives({bench.min_bytes, bench.max_bytes, bench.rounds}, world);
  const std::string table = to_algorithm_file(train::best_rules(cases, world.size()));
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0 && !bench.table.empty()) {
      write_table(bench.table, table);
    }
  });
  CommandResult result{"",
                       {{"ranks", world.size()}, {"cases", nlohmann::json::array()}, {"best_table", table}}};
  const std::vector<BenchFigure> figures = figures_of(cases);
  result.json["figures"] = to_json(figures);
  for (const train::CollectiveCase& measured : cases) {
    result.text += to_text(measured);
    result.json["cases"].push_back(to_json(measured));
  }
  result.text +=
      fmt::format("\nas the table chooses, on {} ranks\n{}\nthe best of this run, for {} ranks:\n{}",
                  world.size(), to_text(figures), world.size(), table);
  return result;
}

}  // namespace athanor::app
