// What the fuzzers share: files of their own, and the one way in which a parser may say no.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <unistd.h>

#include "base/error.hpp"

namespace athanor::fuzz {

/// A folder that lives as long as the process, in memory where there is /dev/shm.
class Folder {
 public:
  Folder() {
    const std::filesystem::path memory = "/dev/shm";
    const bool has_memory = ::access(memory.c_str(), W_OK) == 0;
    std::string name =
        ((has_memory ? memory : std::filesystem::temp_directory_path()) / "athanor_fuzz_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      std::abort();
    }
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string path() const { return path_.string(); }
  /// Makes or replaces a file of the folder; returns its path.
  std::string write(const std::string& name, std::string_view bytes) const {
    const std::string file = (path_ / name).string();
    std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return file;
  }

 private:
  std::filesystem::path path_;
};

/// The one of this process.
inline const Folder& folder() {
  static const Folder instance;
  return instance;
}

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Runs a parser: it takes its input, or refuses it by an error of ours. Anything else is a finding. Returns
/// whether it took it.
template <typename Parse>
bool takes(const Parse& parse) {
  try {
    parse();
    return true;
  } catch (const base::Error&) {
    return false;
  }
}

/// Ends the process as a finding.
inline void require(bool holds) {
  if (!holds) {
    std::abort();
  }
}

/// Two files in one input: the first two bytes say how long the first is.
struct TwoParts {
  std::string_view first;
  std::string_view second;
};
inline TwoParts split_in_two(std::string_view input) {
  if (input.size() < 2) {
    return {};
  }
  const auto byte = [&](std::size_t i) {
    return static_cast<std::size_t>(static_cast<unsigned char>(input[i]));
  };
  const std::string_view rest = input.substr(2);
  const std::size_t length = std::min(byte(0) + 256 * byte(1), rest.size());
  return {rest.substr(0, length), rest.substr(length)};
}

}  // namespace athanor::fuzz
