#include "app/launch.hpp"

#include <ATen/Parallel.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "config/command_line.hpp"
#include "parallel/collectives/algorithm_table.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

int allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? std::max(CPU_COUNT(&set), 1) : 1;
}

std::vector<std::string> hosts_of_ranks(const parallel::Communicator& world) {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return parallel::all_gather_strings(name.data(), world);
}

}  // namespace

int machine_cores() {
  const int online = std::max(static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), 1);
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  double quota = 0.0;
  double period = 0.0;
  if (quota_file >> quota >> period && quota > 0 && period > 0) {
    return std::clamp(static_cast<int>(quota / period), 1, online);
  }
  return online;
}

int count_local_ranks(const parallel::Communicator& world) {
  const std::vector<std::string> hosts = hosts_of_ranks(world);
  const std::string& own = hosts[static_cast<std::size_t>(world.rank())];
  return static_cast<int>(std::count(hosts.begin(), hosts.end(), own));
}

int find_local_rank(const parallel::Communicator& world) {
  const std::vector<std::string> hosts = hosts_of_ranks(world);
  const auto own = hosts.begin() + world.rank();
  return static_cast<int>(std::count(hosts.begin(), own, *own));
}

void share_cores(int local_ranks) {
  const int cores = machine_cores();
  if (local_ranks > cores) {
    base::log_warning(
        "{} ranks share {} cores of this machine (allowed, but slower than one rank for each core)",
        local_ranks, cores);
  }
  if (std::getenv("OMP_NUM_THREADS") == nullptr) {
    at::set_num_threads(std::clamp(cores / local_ranks, 1, allowed_cores()));
  }
}

void check_same_config(const std::string& ini, const parallel::Communicator& world) {
  const std::string hash = std::to_string(base::hash_string(ini));
  const std::vector<std::string> hashes = parallel::all_gather_strings(hash, world);
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](const std::string& text) { return text != hashes[0]; });
  if (other == hashes.end()) {
    return;
  }
  const std::size_t rank = static_cast<std::size_t>(other - hashes.begin());
  const std::vector<std::string> texts = parallel::all_gather_strings(ini, world);
  throw base::ConfigError(
      "{} on ranks 0 and {} (all ranks must have one configuration) give every rank the same config "
      "file and options",
      config::first_difference(texts[0], texts[rank]), rank);
}

void choose_collectives(const std::string& value, const parallel::Communicator& world) {
  if (!parallel::is_algorithm_file(value)) {
    parallel::algorithms_of(world) = parallel::AlgorithmTable(parallel::parse_algorithm_list(value));
    return;
  }
  std::string text;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      std::ifstream file(value);
      text = {std::istreambuf_iterator<char>(file), {}};
      if (!file) {
        throw base::MissingInputError(
            "parallel.collectives={} cannot be read (there is no such file) give a list such as "
            "all_gather:ring, or a file that bench collectives wrote",
            value);
      }
    }
  });
  text = parallel::broadcast_string(text, 0, world);
  parallel::algorithms_of(world) = parallel::AlgorithmTable(parallel::parse_algorithm_file(text, value));
}

void print_error(const std::string& message) {
  const std::string line = fmt::format("athanor: error: {}\n", message);
  std::fwrite(line.data(), 1, line.size(), stderr);  // fmt::print would throw where stderr is closed
}

}  // namespace athanor::app
