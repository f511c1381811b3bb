// A folder that appears under its name only when all of it is there.
#pragma once

#include <string>

namespace athanor::app {

/// Collects files in a folder beside the target; publish() flushes them to disk and renames the folder.
/// Without publish() nothing is left. Not copyable, not movable.
class OutputFolder {
 public:
  /// `target` must be absent, or an empty folder. Throws CannotCreateError.
  explicit OutputFolder(const std::string& target);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  /// Where the files go until publish().
  const std::string& path() const { return unfinished_; }
  /// The absolute path of the folder to be.
  const std::string& target() const { return target_; }
  /// Throws IoError.
  void write(const std::string& name, const std::string& bytes) const;
  /// Throws IoError.
  void copy(const std::string& source, const std::string& name) const;
  /// Flushes the folder and all below it, then renames. Throws IoError, or CannotCreateError when the target
  /// is no longer empty. Call once.
  void publish();

 private:
  std::string target_;
  std::string unfinished_;
  bool published_ = false;
};

}  // namespace athanor::app
