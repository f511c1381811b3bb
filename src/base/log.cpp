#include "base/log.hpp"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>

#include "base/dropped_log_lines.hpp"
#include "base/error.hpp"

namespace athanor::base {
namespace {

std::atomic<std::int64_t> dropped_lines{0};

struct LogState {
  LogOptions options;
  std::shared_ptr<spdlog::logger> logger;
};

std::shared_ptr<spdlog::logger> make_logger(const LogOptions& options) {
  std::vector<spdlog::sink_ptr> sinks{std::make_shared<spdlog::sinks::stderr_color_sink_mt>()};
  if (!options.file.empty()) {
    try {
      sinks.push_back(std::make_shared<spdlog::sinks::basic_file_sink_mt>(options.file));
    } catch (const spdlog::spdlog_ex& error) {
      throw CannotCreateError("cannot open the log file {} ({}) choose another run.dir", options.file,
                              error.what());
    }
  }
  auto logger = std::make_shared<spdlog::logger>("athanor", sinks.begin(), sinks.end());
  logger->set_pattern("%H:%M:%S %^%l%$ %v");
  logger->flush_on(spdlog::level::info);
  logger->set_error_handler([](const std::string& reason) {
    if (dropped_lines.fetch_add(1) == 0) {
      std::fprintf(stderr, "athanor: a log line could not be written (%s); the work goes on\n",
                   reason.c_str());
    }
  });
  return logger;
}

// The log is process-wide by nature (one stderr); it owns no communicator.
LogState& state() {
  static LogState instance{LogOptions{}, make_logger(LogOptions{})};
  return instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

}  // namespace

void configure_log(const LogOptions& options) {
  auto logger = make_logger(options);
  logger->set_level(to_spdlog(options.level));
  state() = LogState{options, std::move(logger)};
}

std::int64_t dropped_log_lines() {
  return dropped_lines;
}

void log_once(LogLevel level, const std::string& message) {
  if (state().options.print_once) {
    state().logger->log(to_spdlog(level), "{}", message);
  }
}

void log_local(LogLevel level, const std::string& message) {
  const std::string& prefix = state().options.local_prefix;
  state().logger->log(to_spdlog(level), "{}{}{}", prefix, prefix.empty() ? "" : ": ", message);
}

}  // namespace athanor::base
