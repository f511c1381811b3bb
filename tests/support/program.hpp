// The built program from outside: what it printed, and its exit code.
#pragma once

#include <sys/wait.h>

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

namespace athanor::tests {

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;

  /// The last line's object.
  nlohmann::json json() const {
    const std::size_t end = out.find_last_not_of('\n');
    const std::size_t begin = out.rfind('\n', end);
    return nlohmann::json::parse(out.substr(begin == std::string::npos ? 0 : begin + 1));
  }
};

/// athanor beside the tests' folder.
inline std::filesystem::path program() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "athanor";
}

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

/// What comes before the program's name to run it on `ranks` ranks.
inline std::string on_ranks(int ranks) {
  return fmt::format(
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 mpirun --oversubscribe "
      "--bind-to none --mca mpi_yield_when_idle 1 -np {}",
      ranks);
}

/// Runs the shell command `before` + program + `arguments`; `folder` takes its output.
inline Outcome run_program(const std::filesystem::path& folder, const std::string& arguments,
                           const std::string& before = "") {
  const std::string command = fmt::format("{} {} {} >{} 2>{}", before, program().string(), arguments,
                                          (folder / "out").string(), (folder / "err").string());
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(folder / "out"), read_file(folder / "err")};
}

}  // namespace athanor::tests
