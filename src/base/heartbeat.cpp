#include "base/heartbeat.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include <fmt/format.h>

#include "base/hash.hpp"

namespace athanor::base {
namespace {

static_assert(std::is_trivially_copyable_v<Heartbeat>);

constexpr std::uint64_t record_kind = 0x3174616562687461;  // changes with the layout

// What lies in a file.
struct Record {
  std::uint64_t kind = record_kind;
  std::uint64_t job = 0;
  Heartbeat heartbeat;
  std::uint64_t checksum = 0;  // of all before it
};

std::uint64_t checksum_of(const Record& record) {
  return hash_bytes(&record, offsetof(Record, checksum));
}

// Reads up to `size` bytes from the start; the number read, or -1.
ssize_t read_file(const char* path, void* data, std::size_t size) {
  const int file = ::open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return -1;
  }
  const ssize_t got = ::pread(file, data, size, 0);
  ::close(file);
  return got;
}

}  // namespace

std::string_view phase_name(WatchedPhase phase) {
  switch (phase) {
    case WatchedPhase::start:
      return "start";
    case WatchedPhase::step:
      return "step";
    case WatchedPhase::evaluate:
      return "evaluation";
    case WatchedPhase::save:
      return "save";
  }
  return "?";
}

int write_heartbeat(const std::string& path, std::uint64_t job, const Heartbeat& heartbeat) noexcept {
  Record record;
  std::memset(static_cast<void*>(&record), 0, sizeof(record));  // padding is part of the checksum
  record.kind = record_kind;
  record.job = job;
  std::memcpy(static_cast<void*>(&record.heartbeat), &heartbeat, sizeof(heartbeat));
  record.checksum = checksum_of(record);
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0) {
    return errno;
  }
  const ssize_t written = ::pwrite(file, &record, sizeof(record), 0);
  const int problem = written == static_cast<ssize_t>(sizeof(record)) ? 0 : written < 0 ? errno : ENOSPC;
  return ::close(file) != 0 && problem == 0 ? errno : problem;
}

std::optional<Heartbeat> read_heartbeat(const std::string& path, std::uint64_t job) noexcept {
  constexpr int attempts = 3;  // a record may be read while it is written
  for (int attempt = 0; attempt < attempts; ++attempt) {
    Record record;
    if (read_file(path.c_str(), &record, sizeof(record)) != static_cast<ssize_t>(sizeof(record))) {
      return std::nullopt;
    }
    if (record.kind == record_kind && record.checksum == checksum_of(record)) {
      return record.job == job ? std::optional(record.heartbeat) : std::nullopt;
    }
  }
  return std::nullopt;
}

std::optional<ProcessState> process_state(std::int32_t pid) {
  std::array<char, 64> path{};
  std::array<char, 1024> text{};
  const auto end = fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/stat", pid);
  *end.out = '\0';
  if (read_file(path.data(), text.data(), text.size() - 1) <= 0) {
    return std::nullopt;
  }
  // The name in parentheses may hold anything; the state comes after the last of them, the start 19 fields
  // on.
  const char* field = std::strrchr(text.data(), ')');
  if (field == nullptr || field[1] != ' ') {
    return std::nullopt;
  }
  ProcessState state;
  state.letter = field[2];
  constexpr int fields_to_start = 20;
  for (int i = 0; i < fields_to_start && field != nullptr; ++i) {
    field = std::strchr(field + 1, ' ');
  }
  state.start = field == nullptr ? 0 : std::strtoull(field, nullptr, 10);
  return state;
}

}  // namespace athanor::base
