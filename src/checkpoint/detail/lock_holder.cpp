#include "checkpoint/detail/lock_holder.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include <nlohmann/json.hpp>

namespace athanor::checkpoint::detail {
namespace {

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) {
    return "unknown";
  }
  return name.data();
}

// Field 22 of /proc/<pid>/stat; 0 when there is no such process.
std::int64_t start_of_process(std::int64_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t name_end = text.rfind(')');  // the name may hold blanks and brackets
  if (name_end == std::string::npos) {
    return 0;
  }
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  constexpr int fields_before_start = 19;  // from field 3 on
  for (int i = 0; i < fields_before_start; ++i) {
    fields >> skipped;
  }
  std::int64_t start = 0;
  fields >> start;
  return start;
}

}  // namespace

LockHolder this_process() {
  LockHolder holder;
  holder.host = host_name();
  holder.process = ::getpid();
  holder.process_start = start_of_process(holder.process);
  if (const char* job = std::getenv("SLURM_JOB_ID")) {
    holder.job = job;
  }
  return holder;
}

std::string to_text(const LockHolder& holder) {
  const nlohmann::json json = {{"host", holder.host},
                               {"process", holder.process},
                               {"process_start", holder.process_start},
                               {"slurm_job", holder.job}};
  return json.dump() + "\n";
}

LockHolder holder_from_text(std::string_view text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return {};
  }
  try {
    return {json.at("host").get<std::string>(), json.at("process").get<std::int64_t>(),
            json.at("process_start").get<std::int64_t>(), json.at("slurm_job").get<std::string>()};
  } catch (const nlohmann::json::exception&) {
    return {};
  }
}

std::string describe(const LockHolder& holder) {
  if (holder.host.empty()) {
    return "a process that has not written its name";
  }
  return fmt::format("process {} on {}{}", holder.process, holder.host,
                     holder.job.empty() ? "" : ", Slurm job " + holder.job);
}

bool is_known_dead(const LockHolder& holder) {
  if (holder.host.empty() || holder.host != host_name()) {
    return false;
  }
  if (::kill(static_cast<pid_t>(holder.process), 0) != 0 && errno == ESRCH) {
    return true;
  }
  const std::int64_t start = start_of_process(holder.process);
  return start != 0 && holder.process_start != 0 && start != holder.process_start;
}

}  // namespace athanor::checkpoint::detail
