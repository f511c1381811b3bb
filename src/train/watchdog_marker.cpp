#include "train/watchdog_marker.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>

namespace athanor::train {

ReportMarker::ReportMarker(const std::string& folder, std::uint64_t job, int rank)
    : path_(folder + "/report"), draft_(fmt::format("{}/report-{}", folder, rank)), job_(job), rank_(rank) {}

std::optional<ReportMarker::Content> ReportMarker::read() const {
  const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return std::nullopt;
  }
  std::array<char, 128> text{};
  const ssize_t got = ::pread(file, text.data(), text.size() - 1, 0);
  ::close(file);
  std::uint64_t job = 0;
  Content content;
  int word = 0;
  if (got <= 0 || std::sscanf(text.data(), "%" SCNx64 " %d %" SCNd64 " %d", &job, &content.rank,
                              &content.sequence, &word) != 4) {
    return std::nullopt;
  }
  if (job != job_ || word < 0 || word > static_cast<int>(MarkerWord::leave)) {
    return std::nullopt;
  }
  content.word = static_cast<MarkerWord>(word);
  return content;
}

bool ReportMarker::write_draft(MarkerWord word) {
  const std::string text =
      fmt::format("{:016x} {} {} {}\n", job_, rank_, ++sequence_, static_cast<int>(word));
  const int file = ::open(draft_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) {
    return false;
  }
  const bool is_written = ::write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  return ::close(file) == 0 && is_written;
}

bool ReportMarker::claim() {
  if (!write_draft(MarkerWord::looking)) {
    return false;
  }
  const bool is_linked = ::link(draft_.c_str(), path_.c_str()) == 0;
  if (!is_linked && errno != EEXIST) {  // a file system without hard links
    return ::rename(draft_.c_str(), path_.c_str()) == 0;
  }
  ::unlink(draft_.c_str());
  return is_linked;
}

bool ReportMarker::write(MarkerWord word) {
  return write_draft(word) && ::rename(draft_.c_str(), path_.c_str()) == 0;
}

void ReportMarker::remove() {
  ::unlink(path_.c_str());
}

}  // namespace athanor::train
