// Two log streams by name, both on stderr: `log_once` for what is the same on every rank (only the process
// that called enable_log_once prints, normally world rank 0), `log_local` for what one rank alone has to say.
#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace athanor::base {

enum class LogLevel { debug, info, warning, error };

/// How the log behaves in this process.
struct LogOptions {
  bool print_once = true;      ///< whether log_once prints here (rank 0: true, others: false)
  std::string local_prefix{};  ///< put before each log_local line, e.g. "teacher rank 3"
  std::string file{};          ///< plain copy of everything printed, appended; empty: none
  LogLevel level = LogLevel::info;
};

/// Sets the process-wide log up; may be called again (the last call wins). Throws CannotCreateError when
/// `file` cannot be opened.
void configure_log(const LogOptions& options);

/// Prints one line on the reporting rank only.
void log_once(LogLevel level, const std::string& message);
/// Prints one line with this rank's prefix, on every rank that calls.
void log_local(LogLevel level, const std::string& message);

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_once(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_once(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace athanor::base
