// What the data tests share: a folder that goes away, and files with given bytes.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "data/token_file.hpp"

namespace athanor::tests {

/// A fresh folder for one test, removed at its end.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "athanor-data-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_file(const std::string& path) {
  std::ostringstream bytes;
  bytes << std::ifstream(path, std::ios::binary).rdbuf();
  return bytes.str();
}

/// Writes documents as a token file.
inline void write_tokens(const std::string& prefix, const std::vector<std::vector<std::int32_t>>& documents,
                         data::TokenType type = data::TokenType::uint16) {
  data::TokenFileWriter writer(prefix, type);
  for (const auto& document : documents) {
    writer.add(document);
    writer.end_document();
  }
  writer.finish();
}

/// One document of the ids first, first + 1, ... (so that a token tells where it stood).
inline std::vector<std::int32_t> counting(std::int32_t first, std::int32_t count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (std::int32_t i = 0; i < count; ++i) {
    ids[static_cast<std::size_t>(i)] = first + i;
  }
  return ids;
}

/// The message of the Error that `body` throws; a failure when it throws nothing, or another type.
template <typename Error, typename Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

}  // namespace athanor::tests
