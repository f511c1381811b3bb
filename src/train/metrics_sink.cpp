#include "train/metrics_sink.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "base/error.hpp"
#include "base/log.hpp"

namespace athanor::train {
namespace {

// A JSON number, or null with a mark on the object for one that JSON cannot hold.
void put(nlohmann::ordered_json& object, const char* key, double value) {
  if (std::isfinite(value)) {
    object[key] = value;
  } else {
    object[key] = nullptr;
    object["nonfinite"] = true;
  }
}

nlohmann::ordered_json to_json(const StepTimes& times) {
  return {
      {"data", times.data_s},         {"forward", times.forward_s},       {"backward", times.backward_s},
      {"exchange", times.exchange_s}, {"reduce", times.reduce_s},         {"optimizer", times.optimizer_s},
      {"gather", times.gather_s},     {"checkpoint", times.checkpoint_s}, {"total", times.total_s}};
}

nlohmann::ordered_json to_json(const StepMetrics& metrics) {
  nlohmann::ordered_json object;
  object["role"] = metrics.role;
  object["step"] = metrics.step;
  put(object, "loss", metrics.loss);
  put(object, "perplexity", std::exp(metrics.loss));
  put(object, "total_loss", metrics.total_loss);
  put(object, "balance_loss", metrics.balance_loss);
  for (const auto& [name, value] : metrics.balance_terms) {
    put(object["balance_terms"], name.c_str(), value);
  }
  put(object, "grad_norm", metrics.grad_norm);
  put(object, "lr", metrics.lr);
  put(object, "loss_scale", metrics.loss_scale);
  object["tokens"] = metrics.tokens;
  put(object, "tokens_per_s", metrics.tokens_per_s);
  put(object, "expert_use_std", metrics.expert_use_std);
  object["dropped"] = metrics.dropped;
  object["skipped"] = metrics.skipped;
  object["total_skips"] = metrics.total_skips;
  object["guard_trips"] = metrics.guard_trips;
  if (!metrics.guard.empty()) {
    object["guard"] = metrics.guard;
  }
  for (const auto& [name, value] : metrics.monitors) {
    put(object, name.c_str(), value);
  }
  for (const auto& [name, value] : metrics.figures) {
    put(object, name.c_str(), value);
  }
  if (!metrics.phase.empty()) {
    object["phase"] = metrics.phase;
  }
  std::int64_t total_bytes = 0;
  for (int i = 0; i < parallel::num_traffic_kinds; ++i) {
    const auto index = static_cast<std::size_t>(i);
    object["bytes_sent_by"][std::string(parallel::traffic_names[index])] = metrics.bytes_sent[index];
    total_bytes += metrics.bytes_sent[index];
  }
  object["bytes_sent"] = total_bytes;
  object["fp8_underflow"] = metrics.wire_losses.underflow;
  object["fp8_nonfinite"] = metrics.wire_losses.nonfinite;
  object["peak_rss_bytes"] = metrics.peak_rss_bytes;
  object["times_s"] = to_json(metrics.times);
  if (metrics.slowest.rank >= 0) {
    object["slowest_rank"] = {
        {"rank", metrics.slowest.rank}, {"score", metrics.slowest.score}, {"phase", metrics.slowest.phase}};
  }
  for (const LayerBalance& layer : metrics.layers) {
    object["layers"].push_back({{"use_std", layer.use_std},
                                {"use_max", layer.use_max},
                                {"use_min", layer.use_min},
                                {"dropped", layer.dropped},
                                {"entropy", layer.entropy}});
  }
  return object;
}

// Whether lines on stderr end up on a terminal: directly, or through mpirun, which hands them on from a pipe.
bool is_shown_on_terminal() {
  if (::isatty(STDERR_FILENO) == 1) {
    return true;
  }
  const std::filesystem::path launcher = "/proc/" + std::to_string(::getppid());
  std::string name;
  std::getline(std::ifstream(launcher / "comm"), name);
  if (name != "mpirun" && name != "mpiexec" && name != "orterun" && name != "prterun") {
    return false;
  }
  std::error_code error;
  const std::string target = std::filesystem::read_symlink(launcher / "fd" / "2", error).string();
  return !error && (target.starts_with("/dev/pts/") || target.starts_with("/dev/tty"));
}

std::string format_duration(double seconds) {
  const auto total = static_cast<std::int64_t>(std::llround(seconds));
  if (total >= 3600) {
    return fmt::format("{}h{:02}m", total / 3600, total % 3600 / 60);
  }
  return fmt::format("{}m{:02}s", total / 60, total % 60);
}

enum class LineKind { cut, kept, kept_evaluation_of_first_step };

// Lines are kept that belong to a run that goes on after `first_step`. An evaluation at the last step is made
// again.
LineKind kind_of(const std::string& line, const MetricsSinkOptions& options) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) {
    return LineKind::cut;  // half a line of a job that was killed
  }
  const auto step = object["step"].get<std::int64_t>();
  const bool is_evaluation = object.contains("evaluation");
  if (step > options.first_step || (is_evaluation && step >= options.total_steps)) {
    return LineKind::cut;
  }
  return is_evaluation && step == options.first_step ? LineKind::kept_evaluation_of_first_step
                                                     : LineKind::kept;
}

// Drops what an earlier job wrote beyond the state that this one starts from. Returns whether an evaluation
// of that state is there.
bool cut_metrics(const MetricsSinkOptions& options) {
  if (!std::filesystem::is_regular_file(options.path)) {  // nothing yet, or a device
    return false;
  }
  std::ifstream file(options.path);
  bool has_evaluation = false;
  const std::string kept_path = options.path + ".tmp";
  std::int64_t cut = 0;
  {
    std::ofstream kept(kept_path, std::ios::trunc);
    for (std::string line; std::getline(file, line);) {
      const LineKind kind = kind_of(line, options);
      has_evaluation = has_evaluation || kind == LineKind::kept_evaluation_of_first_step;
      if (kind == LineKind::cut) {
        ++cut;
      } else {
        kept << line << '\n';
      }
    }
    if (!kept.flush()) {
      throw base::CannotCreateError("cannot write {} (disk full, or read-only) choose another run.dir",
                                    kept_path);
    }
  }
  std::filesystem::rename(kept_path, options.path);
  if (cut > 0) {
    base::log_info("{}: cut {} lines of steps after {}", options.path, cut, options.first_step);
  }
  return has_evaluation;
}

}  // namespace

MetricsSink::MetricsSink(const MetricsSinkOptions& options)
    : options_(options), terminal_(is_shown_on_terminal()) {
  if (!options_.path.empty()) {
    had_evaluation_ = cut_metrics(options_);
    file_ = base::LineFile(options_.path);
  }
}

MetricsSink::~MetricsSink() {
  if (line_open_) {
    std::fputc('\n', stderr);
  }
  if (file_.dropped() > 0) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("{} lines of {} could not be written and are missing there", file_.dropped(),
                                options_.path));
  }
}

void MetricsSink::write_step(const StepMetrics& metrics) {
  const double step_s = metrics.times.total_s;
  smoothed_step_s_ = smoothed_step_s_ == 0.0 ? step_s : 0.9 * smoothed_step_s_ + 0.1 * step_s;
  if (!options_.path.empty()) {
    file_.append(to_json(metrics).dump());
    show_progress(metrics);
  }
}

void MetricsSink::show_progress(const StepMetrics& metrics) {
  const double remaining_s = smoothed_step_s_ * static_cast<double>(options_.total_steps - metrics.step);
  std::string line =
      fmt::format("step {}/{}  loss {:.4f}  norm {:.3f}  lr {:.2e}  {:.0f} tokens/s  balance std {:.3f}",
                  metrics.step, options_.total_steps, metrics.loss, metrics.grad_norm, metrics.lr,
                  metrics.tokens_per_s, metrics.expert_use_std);
  if (const auto kd = metrics.figures.find("kd_loss"); kd != metrics.figures.end()) {
    line += fmt::format("  {} kd {:.4f} hidden {:.4f}", metrics.phase, kd->second,
                        metrics.figures.at("hidden_loss"));
  }
  if (metrics.dropped > 0) {
    line += fmt::format("  dropped {}", metrics.dropped);
  }
  if (metrics.skipped) {
    line += fmt::format("  SKIPPED ({} so far)", metrics.total_skips);
  }
  line += fmt::format("  ETA {}", format_duration(remaining_s));
  const bool due =
      metrics.step % options_.log_every == 0 || metrics.step == 1 || metrics.step == options_.total_steps;
  if (!options_.leads) {
    if (due) {
      base::log_local(base::LogLevel::info, line);
    }
    return;
  }
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    std::fflush(stderr);
    line_open_ = true;
  }
  if (due || metrics.skipped) {
    if (line_open_) {
      std::fputs("\r\033[K", stderr);
      line_open_ = false;
    }
    base::log_once(metrics.skipped ? base::LogLevel::warning : base::LogLevel::info, line);
  }
}

void MetricsSink::write_evaluation(std::int64_t step, const std::vector<infer::DomainLoss>& losses) {
  if (options_.path.empty()) {
    return;
  }
  nlohmann::ordered_json object;
  object["evaluation"] = true;
  object["step"] = step;
  for (const infer::DomainLoss& domain : losses) {
    nlohmann::ordered_json& entry = object["domains"][domain.domain];
    put(entry, "loss", domain.loss);
    put(entry, "perplexity", domain.perplexity);
    entry["tokens"] = domain.tokens;
    const std::string line =
        fmt::format("evaluation at step {}: {} loss {:.4f}  perplexity {:.2f}  ({} tokens)", step,
                    domain.domain, domain.loss, domain.perplexity, domain.tokens);
    options_.leads ? base::log_once(base::LogLevel::info, line) : base::log_local(base::LogLevel::info, line);
  }
  file_.append(object.dump());
}

}  // namespace athanor::train
