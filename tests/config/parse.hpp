// Parsing in tests: a command line as words, config files in a folder of their own.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "config/command_line.hpp"

namespace athanor::tests {

inline config::ParsedCommand parse(std::vector<std::string> words) {
  words.insert(words.begin(), "athanor");
  std::vector<const char*> argv;
  for (const std::string& word : words) {
    argv.push_back(word.c_str());
  }
  return config::parse_command_line(static_cast<int>(argv.size()), argv.data());
}

/// The source tree.
inline std::filesystem::path source_folder() {
  return ATHANOR_SOURCE_DIR;
}

/// A folder that is removed at the end of the test.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "athanor_config_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) {
      throw base::CannotCreateError("no scratch folder {} (mkdtemp failed) check the temporary folder", name);
    }
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string path(const std::string& name) const { return (path_ / name).string(); }
  /// Writes a file and returns its path.
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name)) << text;
    return path(name);
  }

 private:
  std::filesystem::path path_;
};

/// Expects that `action` throws an Error with `code` whose message has all of `parts`.
template <typename Action>
void expect_error(Action action, base::ExitCode code, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown; expected a message with: " << parts.at(0);
  } catch (const base::Error& error) {
    EXPECT_EQ(static_cast<int>(error.exit_code()), static_cast<int>(code)) << error.what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "message: " << error.what() << "\nmissing: " << part;
    }
  }
}

/// A refused command line: exit code 64.
inline void expect_refused(const std::vector<std::string>& words, const std::vector<std::string>& parts) {
  expect_error([&] { parse(words); }, base::ExitCode::usage, parts);
}

}  // namespace athanor::tests
