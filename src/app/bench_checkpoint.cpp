// `athanor bench checkpoint`.
#include "train/bench_checkpoint.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

// The copy is the limit of what training stands still for; it hardly varies.
train::Spread against(const train::Spread& spread, double limit) {
  return {spread.median / limit, spread.min / limit, spread.max / limit};
}

std::vector<BenchFigure> figures_of(const train::BenchCheckpointResult& result) {
  return {{"synchronous save, fsynced", "MB/s", result.save.median / 1e6, "raw write with fsync",
           result.raw_write.median / 1e6, result.save_ratio},
          {"load, cold, checksums verified", "MB/s", result.load.median / 1e6, "raw read, cold",
           result.raw_read.median / 1e6, result.load_ratio},
          {"asynchronous save: training stands still", "ms", result.stall_s.median * 1e3, "one memory copy",
           result.copy_s.median * 1e3, against(result.stall_s, result.copy_s.median)},
          {"step beside an asynchronous save", "ms", result.overlapped_step_s.median * 1e3,
           "step without one", result.step_s.median * 1e3, result.slowdown}};
}

nlohmann::json to_json(const train::BenchCheckpointResult& result) {
  nlohmann::json json = {
      {"bytes", result.bytes}, {"disk_bytes", result.disk_bytes}, {"parameters", result.parameters}};
  json["figures"] = to_json(figures_of(result));
  put_number(json, "bytes_per_parameter",
             static_cast<double>(result.disk_bytes) / static_cast<double>(result.parameters));
  put_spread(json, "raw_write_bytes_per_s", result.raw_write);
  put_spread(json, "save_bytes_per_s", result.save);
  put_spread(json, "save_ratio", result.save_ratio);
  put_spread(json, "raw_read_bytes_per_s", result.raw_read);
  put_spread(json, "load_bytes_per_s", result.load);
  put_spread(json, "load_ratio", result.load_ratio);
  put_spread(json, "stall_s", result.stall_s);
  put_spread(json, "copy_s", result.copy_s);
  put_spread(json, "step_s", result.step_s);
  put_spread(json, "overlapped_step_s", result.overlapped_step_s);
  put_spread(json, "slowdown", result.slowdown);
  return json;
}

std::string line(const std::string& name, const train::Spread& spread, double unit,
                 const std::string& suffix) {
  return fmt::format("{:<34} {:>9.3f} {:<5} ({:.3f} to {:.3f})\n", name, spread.median / unit, suffix,
                     spread.min / unit, spread.max / unit);
}

std::string to_text(const train::BenchCheckpointResult& result) {
  std::string text =
      fmt::format("one checkpoint: {:.1f} MB of state, {:.1f} MB on disk, {:.3f} bytes a parameter\n",
                  static_cast<double>(result.bytes) / 1e6, static_cast<double>(result.disk_bytes) / 1e6,
                  static_cast<double>(result.disk_bytes) / static_cast<double>(result.parameters));
  text += "medians over rounds (smallest to largest)\n";
  text += line("raw write + fsync", result.raw_write, 1e6, "MB/s");
  text += line("synchronous save", result.save, 1e6, "MB/s");
  text += line("  against the raw write", result.save_ratio, 1.0, "");
  text += line("raw read, cold", result.raw_read, 1e6, "MB/s");
  text += line("load, cold, verified", result.load, 1e6, "MB/s");
  text += line("  against the raw read", result.load_ratio, 1.0, "");
  text += line("asynchronous save: training stood", result.stall_s, 1e-3, "ms");
  text += line("  one memory copy of the state", result.copy_s, 1e-3, "ms");
  text += line("step without a save", result.step_s, 1e-3, "ms");
  text += line("step beside a save", result.overlapped_step_s, 1e-3, "ms");
  text += line("  against one without", result.slowdown, 1.0, "");
  return text + to_text(figures_of(result));
}

}  // namespace

CommandResult run_bench_checkpoint(const config::RunConfig& config, const parallel::Communicator& world) {
  train::BenchCheckpointOptions options;
  options.trainer.role = make_role_options(config.roles[0]);
  options.trainer.global_batch = config.batch.global;
  options.trainer.seq = config.batch.seq;
  options.trainer.total_steps = 1000;
  options.trainer.seed = config.run.seed;
  options.folder = config.run.dir + "/bench-checkpoint";
  options.rounds = config.bench.rounds;
  parallel::run_agreed(world, [&] {
    std::error_code error;
    std::filesystem::create_directories(options.folder, error);
    if (error) {
      throw base::CannotCreateError("run.dir={} cannot be written ({}) choose a folder you may write to",
                                    config.run.dir, error.message());
    }
  });
  const train::BenchCheckpointResult result = train::bench_checkpoint(options, world);
  if (world.rank() == 0) {
    std::filesystem::remove_all(options.folder);
  }
  return {to_text(result), to_json(result)};
}

}  // namespace athanor::app
