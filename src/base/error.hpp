// The error types of the project, each with the exit code that main() returns for it (sysexits.h).
//
// Message grammar: "what is wrong (why) what to do".
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace athanor::base {

/// Exit codes of every athanor command.
enum class ExitCode : int {
  ok = 0,
  usage = 64,          ///< bad option or config
  bad_data = 65,       ///< bad data, or no loadable checkpoint
  missing_input = 66,  ///< an input file does not exist
  internal = 70,       ///< numeric or internal stop
  cannot_create = 73,  ///< an output cannot be created, or is locked
  io = 74,             ///< read or write failed
  requeue = 75,        ///< checkpointed on request, requeue me
};

/// Base of all errors that athanor throws on purpose.
class Error : public std::runtime_error {
 public:
  Error(ExitCode exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}
  ExitCode exit_code() const noexcept { return exit_code_; }

 private:
  ExitCode exit_code_;
};

/// Defines an error type with a fixed exit code and a fmt-style constructor.
#define ATHANOR_DEFINE_ERROR(Name, code)                                   \
  class Name : public Error {                                              \
   public:                                                                 \
    template <typename... Args>                                            \
    explicit Name(fmt::format_string<Args...> format, Args&&... args)      \
        : Error(code, fmt::format(format, std::forward<Args>(args)...)) {} \
  }

ATHANOR_DEFINE_ERROR(ConfigError, ExitCode::usage);         ///< a wrong option or combination of options
ATHANOR_DEFINE_ERROR(DataError, ExitCode::bad_data);        ///< a malformed or unsuitable data file
ATHANOR_DEFINE_ERROR(CheckpointError, ExitCode::bad_data);  ///< no checkpoint can be loaded
ATHANOR_DEFINE_ERROR(MissingInputError, ExitCode::missing_input);
ATHANOR_DEFINE_ERROR(CommError, ExitCode::internal);      ///< an MPI or NCCL call failed
ATHANOR_DEFINE_ERROR(DeviceError, ExitCode::internal);    ///< a CUDA or cuBLAS call failed
ATHANOR_DEFINE_ERROR(NumericError, ExitCode::internal);   ///< non-finite numbers stop the run
ATHANOR_DEFINE_ERROR(InternalError, ExitCode::internal);  ///< a broken invariant of ours
ATHANOR_DEFINE_ERROR(CannotCreateError, ExitCode::cannot_create);
ATHANOR_DEFINE_ERROR(IoError, ExitCode::io);

#undef ATHANOR_DEFINE_ERROR

}  // namespace athanor::base

/// Throws InternalError with the condition's text, file and line unless `condition` holds. Always on.
/// Arguments after the condition are a fmt format string and its values.
#define ATHANOR_CHECK(condition, ...)                                                     \
  do {                                                                                    \
    if (!(condition)) {                                                                   \
      throw ::athanor::base::InternalError("{}:{}: {} ({} is false)", __FILE__, __LINE__, \
                                           ::fmt::format(__VA_ARGS__), #condition);       \
    }                                                                                     \
  } while (false)
