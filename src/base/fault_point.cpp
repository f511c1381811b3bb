#include "base/fault_point.hpp"

#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/error.hpp"

namespace athanor::base {
namespace {

enum class FaultAction { kill, exit, throw_error, sleep, hang, stop, value };

constexpr int any_rank = -1;

struct Fault {
  std::string point;
  int rank = any_rank;
  std::int64_t nth = 1;
  FaultAction action = FaultAction::kill;
  double seconds = 0.0;
  double value = 0.0;
  std::int64_t passed = 0;  // times the point was passed
};

struct FaultState {
  std::mutex mutex;
  std::optional<std::vector<Fault>> faults;  // absent: ATHANOR_FAULT not read yet
};

FaultState& state() {
  static FaultState instance;
  return instance;
}

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw ConfigError(
      "ATHANOR_FAULT has '{}' ({}) write point:rank:nth:action, action one of kill, exit, throw, "
      "sleep=SECONDS, hang, stop, value=NUMBER",
      text, why);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t end = text.find(separator); end != std::string_view::npos; end = text.find(separator)) {
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

template <typename Number>
Number number_of(std::string_view text, std::string_view field, Number least, const char* what) {
  Number value{};
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (error != std::errc() || end != field.data() + field.size() || !(value >= least)) {
    refuse(text, fmt::format("{} is '{}'", what, field));
  }
  return value;
}

// Any number, nan and inf too.
double damage_of(std::string_view text, std::string_view field) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (error != std::errc() || end != field.data() + field.size()) {
    refuse(text, fmt::format("the value is '{}'", field));
  }
  return value;
}

Fault parse_fault(std::string_view text) {
  const auto fields = split(text, ':');
  if (fields.size() != 4 || fields[0].empty()) {
    refuse(text, fmt::format("{} fields", fields.size()));
  }
  Fault fault;
  fault.point = fields[0];
  fault.rank = fields[1] == "*" ? any_rank : number_of(text, fields[1], 0, "the rank");
  fault.nth = number_of(text, fields[2], std::int64_t{1}, "the passing");
  constexpr std::string_view sleep_prefix = "sleep=";
  constexpr std::string_view value_prefix = "value=";
  if (fields[3] == "kill") {
    fault.action = FaultAction::kill;
  } else if (fields[3] == "exit") {
    fault.action = FaultAction::exit;
  } else if (fields[3] == "throw") {
    fault.action = FaultAction::throw_error;
  } else if (fields[3] == "hang") {
    fault.action = FaultAction::hang;
  } else if (fields[3] == "stop") {
    fault.action = FaultAction::stop;
  } else if (fields[3].starts_with(sleep_prefix)) {
    fault.action = FaultAction::sleep;
    fault.seconds = number_of(text, fields[3].substr(sleep_prefix.size()), 0.0, "the time");
  } else if (fields[3].starts_with(value_prefix)) {
    fault.action = FaultAction::value;
    fault.value = damage_of(text, fields[3].substr(value_prefix.size()));
  } else {
    refuse(text, fmt::format("no action '{}'", fields[3]));
  }
  return fault;
}

std::vector<Fault> parse_setting(std::string_view setting) {
  std::vector<Fault> faults;
  if (!setting.empty()) {
    for (const std::string_view text : split(setting, ',')) {
      faults.push_back(parse_fault(text));
    }
  }
  return faults;
}

void read_once(FaultState& faults) {
  if (!faults.faults) {
    const char* setting = std::getenv("ATHANOR_FAULT");
    faults.faults = parse_setting(setting == nullptr ? "" : setting);
  }
}

// The fault to act on now; counts the passing.
std::optional<Fault> due_fault(std::string_view point, int rank) {
  FaultState& faults = state();
  const std::lock_guard lock(faults.mutex);
  read_once(faults);
  std::optional<Fault> due;
  for (Fault& fault : *faults.faults) {
    if (fault.point == point && (fault.rank == any_rank || fault.rank == rank) &&
        ++fault.passed == fault.nth) {
      due = fault;
    }
  }
  return due;
}

}  // namespace

void fault_point(std::string_view point, int rank) {
  fault_value(point, rank);
}

std::optional<double> fault_value(std::string_view point, int rank) {
  const std::optional<Fault> fault = due_fault(point, rank);
  if (!fault) {
    return std::nullopt;
  }
  switch (fault->action) {
    case FaultAction::kill:
      std::raise(SIGKILL);
      break;
    case FaultAction::exit:
      std::_Exit(static_cast<int>(ExitCode::internal));
    case FaultAction::throw_error:
      throw IoError("failed at {} on rank {} (ATHANOR_FAULT asks for it) unset ATHANOR_FAULT", point, rank);
    case FaultAction::sleep:
      std::this_thread::sleep_for(std::chrono::duration<double>(fault->seconds));
      break;
    case FaultAction::hang:
      for (std::atomic<bool> is_over = false; !is_over;) {  // busy, as a loop that never ends is
      }
      break;
    case FaultAction::stop:
      std::raise(SIGSTOP);
      break;
    case FaultAction::value:
      return fault->value;
  }
  return std::nullopt;
}

void read_fault_setting() {
  FaultState& faults = state();
  const std::lock_guard lock(faults.mutex);
  read_once(faults);
}

void set_faults(const std::string& setting) {
  std::vector<Fault> parsed = parse_setting(setting);
  FaultState& faults = state();
  const std::lock_guard lock(faults.mutex);
  faults.faults = std::move(parsed);
}

}  // namespace athanor::base
