// Who of a job's ranks speaks for all about its standstill, and what is to be done: one small file, changed
// by whole replacement.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace athanor::train {

/// What the speaker says.
enum class MarkerWord { looking, hang, leave };

/// One rank's access to the file. Nothing throws: what cannot be read is absent, what cannot be written is
/// refused.
class ReportMarker {
 public:
  struct Content {
    int rank = 0;               ///< of the speaker
    std::int64_t sequence = 0;  ///< counts up while it lives
    MarkerWord word = MarkerWord::looking;
  };

  ReportMarker(const std::string& folder, std::uint64_t job, int rank);

  /// Of this job.
  std::optional<Content> read() const;
  /// Becomes the speaker if there is none.
  bool claim();
  /// Speaks, also in place of another.
  bool write(MarkerWord word);
  void remove();

 private:
  bool write_draft(MarkerWord word);

  std::string path_;
  std::string draft_;
  std::uint64_t job_ = 0;
  int rank_ = 0;
  std::int64_t sequence_ = 0;
};

}  // namespace athanor::train
