#include "parallel/collectives/algorithm_table.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <sstream>
#include <utility>

#include <fmt/format.h>

#include "base/error.hpp"
#include "parallel/communicator.hpp"

namespace athanor::parallel {
namespace {

constexpr std::int64_t kib = 1024;

// From `athanor bench collectives` on 2 ranks with a core each and on 4 ranks that share 2 cores, three runs,
// Open MPI 4.1 over shared memory. Pairs in turn move exchanges of some MiB up to 1.25 times as fast as all
// messages at once, smaller ones on 4 ranks at half the speed. MPI's all-to-all would be another 2 to 5 %
// faster there, but hangs where two ranks do not agree on a length, which the others report. On 2 ranks the
// ways of an all-gather and a broadcast hardly differ. On 4 MPI's all-gather of small blocks takes up to 1.6
// times as long as all messages at once, and its broadcast of large ones up to 1.5 times as long as a tree.
// Larger groups were not measured: exchanges keep all messages under way there, and the rest is MPI's.
constexpr std::array measured = {
    AlgorithmRule{Operation::exchange, 2, 2048 * kib, Algorithm::at_once},
    AlgorithmRule{Operation::exchange, 2, 32768 * kib, Algorithm::pairwise},
    AlgorithmRule{Operation::exchange, 4, 512 * kib, Algorithm::at_once},
    AlgorithmRule{Operation::exchange, 4, 8192 * kib, Algorithm::pairwise},
    AlgorithmRule{Operation::exchange, any_ranks, any_bytes, Algorithm::at_once},
    AlgorithmRule{Operation::all_gather, 2, any_bytes, Algorithm::collective},
    AlgorithmRule{Operation::all_gather, 4, 512 * kib, Algorithm::at_once},
    AlgorithmRule{Operation::all_gather, 4, 8192 * kib, Algorithm::pairwise},
    AlgorithmRule{Operation::all_gather, 4, any_bytes, Algorithm::at_once},
    AlgorithmRule{Operation::all_gather, any_ranks, any_bytes, Algorithm::collective},
    AlgorithmRule{Operation::all_reduce, 2, 128 * kib, Algorithm::gather},
    AlgorithmRule{Operation::all_reduce, 4, 32 * kib, Algorithm::gather},
    AlgorithmRule{Operation::all_reduce, any_ranks, 16 * kib, Algorithm::gather},
    AlgorithmRule{Operation::all_reduce, any_ranks, any_bytes, Algorithm::blocks},
    AlgorithmRule{Operation::broadcast, 2, any_bytes, Algorithm::collective},
    AlgorithmRule{Operation::broadcast, 4, 512 * kib, Algorithm::collective},
    AlgorithmRule{Operation::broadcast, 4, any_bytes, Algorithm::binomial},
    AlgorithmRule{Operation::broadcast, any_ranks, any_bytes, Algorithm::collective},
    AlgorithmRule{Operation::barrier, any_ranks, any_bytes, Algorithm::collective},
};

constexpr std::array operations = {Operation::exchange, Operation::all_gather, Operation::all_reduce,
                                   Operation::broadcast, Operation::barrier};

constexpr std::array exchange_algorithms = {Algorithm::at_once, Algorithm::pairwise, Algorithm::collective};
constexpr std::array all_gather_algorithms = {Algorithm::at_once, Algorithm::pairwise, Algorithm::ring,
                                              Algorithm::collective};
constexpr std::array all_reduce_algorithms = {Algorithm::gather, Algorithm::blocks};
constexpr std::array broadcast_algorithms = {Algorithm::at_once, Algorithm::binomial, Algorithm::collective};
constexpr std::array barrier_algorithms = {Algorithm::dissemination, Algorithm::collective};

bool can_do(Operation operation, Algorithm algorithm) {
  return std::ranges::count(algorithms_for(operation), algorithm) > 0;
}

std::string operation_list() {
  std::string text;
  for (const Operation operation : operations) {
    text += fmt::format("{}{}", text.empty() ? "" : ", ", name_of(operation));
  }
  return text;
}

std::string algorithm_list(Operation operation) {
  std::string text;
  for (const Algorithm algorithm : algorithms_for(operation)) {
    text += fmt::format("{}{}", text.empty() ? "" : ", ", name_of(algorithm));
  }
  return text;
}

// `where` names the value and the place for messages.
Operation operation_of(const std::string& name, const std::string& where) {
  for (const Operation operation : operations) {
    if (name_of(operation) == name) {
      return operation;
    }
  }
  throw base::ConfigError("{} (there is no operation '{}') use one of {}", where, name, operation_list());
}

Algorithm algorithm_of(Operation operation, const std::string& name, const std::string& where) {
  for (const Algorithm algorithm : algorithms_for(operation)) {
    if (name_of(algorithm) == name) {
      return algorithm;
    }
  }
  throw base::ConfigError("{} ({} has no algorithm '{}') use one of {}", where, name_of(operation), name,
                          algorithm_list(operation));
}

// A number from 1 on, or * for any.
template <typename Integer>
Integer limit_of(const std::string& word, Integer any, const std::string& where) {
  if (word == "*") {
    return any;
  }
  Integer value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size() || value < 1) {
    throw base::ConfigError("{} ('{}' is no limit) write a whole number from 1 on, or * for any", where,
                            word);
  }
  return value;
}

// In a group of `ranks` the first rule decides alone, or none of those that count is MPI's all-to-all.
void check_exchange(const std::vector<AlgorithmRule>& rules, int ranks) {
  int counted = 0;
  bool has_collective = false;
  for (const AlgorithmRule& rule : rules) {
    if (rule.operation != Operation::exchange || ranks > rule.max_ranks) {
      continue;
    }
    ++counted;
    has_collective = has_collective || rule.algorithm == Algorithm::collective;
    if (rule.max_bytes == any_bytes) {
      break;
    }
  }
  if (has_collective && counted > 1) {
    throw base::ConfigError(
        "parallel.collectives chooses exchange:collective for some sizes only (the ranks of one exchange "
        "send "
        "different amounts and must agree on MPI's all-to-all) choose it for all sizes, or at_once and "
        "pairwise");
  }
}

}  // namespace

std::span<const Operation> all_operations() {
  return operations;
}

std::span<const Algorithm> algorithms_for(Operation operation) {
  switch (operation) {
    case Operation::exchange:
      return exchange_algorithms;
    case Operation::all_gather:
      return all_gather_algorithms;
    case Operation::all_reduce:
      return all_reduce_algorithms;
    case Operation::broadcast:
      return broadcast_algorithms;
    case Operation::barrier:
      return barrier_algorithms;
  }
  return {};
}

std::string_view name_of(Operation operation) {
  constexpr std::array<std::string_view, 5> names = {"exchange", "all_gather", "all_reduce", "broadcast",
                                                     "barrier"};
  return names[static_cast<std::size_t>(operation)];
}

std::string_view name_of(Algorithm algorithm) {
  constexpr std::array<std::string_view, 8> names = {"collective", "at_once",       "pairwise", "ring",
                                                     "binomial",   "dissemination", "gather",   "blocks"};
  return names[static_cast<std::size_t>(algorithm)];
}

AlgorithmTable::AlgorithmTable(std::vector<AlgorithmRule> first) : rules_(std::move(first)) {
  for (const AlgorithmRule& rule : rules_) {
    if (!can_do(rule.operation, rule.algorithm)) {
      throw base::ConfigError("parallel.collectives has {}:{} (that algorithm is for others) use one of {}",
                              name_of(rule.operation), name_of(rule.algorithm),
                              algorithm_list(rule.operation));
    }
  }
  rules_.insert(rules_.end(), measured.begin(), measured.end());
  for (const AlgorithmRule& rule : rules_) {
    check_exchange(rules_, rule.max_ranks);
  }
}

Algorithm AlgorithmTable::choose(Operation operation, int ranks, std::int64_t bytes) const {
  for (const AlgorithmRule& rule : rules_) {
    if (rule.operation == operation && ranks <= rule.max_ranks && bytes <= rule.max_bytes) {
      return rule.algorithm;
    }
  }
  throw base::InternalError("no algorithm for {} of {} bytes on {} ranks", name_of(operation), bytes, ranks);
}

bool is_algorithm_file(const std::string& value) {
  return !value.empty() && value.find(':') == std::string::npos;
}

std::vector<AlgorithmRule> parse_algorithm_list(const std::string& list) {
  std::vector<AlgorithmRule> rules;
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) {
    const std::string where = fmt::format("parallel.collectives={}", list);
    const std::size_t colon = item.find(':');
    if (colon == std::string::npos) {
      throw base::ConfigError(
          "{} ('{}' is no operation:algorithm) give a list such as all_gather:ring, or one file", where,
          item);
    }
    const Operation operation = operation_of(item.substr(0, colon), where);
    const auto is_same = [&](const AlgorithmRule& rule) { return rule.operation == operation; };
    if (std::ranges::any_of(rules, is_same)) {
      throw base::ConfigError("{} ({} is there twice) name an algorithm once for each operation", where,
                              name_of(operation));
    }
    rules.push_back(
        {operation, any_ranks, any_bytes, algorithm_of(operation, item.substr(colon + 1), where)});
  }
  return rules;
}

std::vector<AlgorithmRule> parse_algorithm_file(const std::string& text, const std::string& path) {
  std::vector<AlgorithmRule> rules;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string where = fmt::format("parallel.collectives={}, line {}", path, ++number);
    std::istringstream words(line.substr(0, line.find('#')));
    const std::vector<std::string> word{std::istream_iterator<std::string>(words), {}};
    if (word.empty()) {
      continue;
    }
    if (word.size() != 4) {
      throw base::ConfigError(
          "{} (it has {} words) write operation, largest group, most bytes and algorithm, such as all_gather "
          "4 65536 ring",
          where, word.size());
    }
    const Operation operation = operation_of(word[0], where);
    rules.push_back({operation, limit_of(word[1], any_ranks, where), limit_of(word[2], any_bytes, where),
                     algorithm_of(operation, word[3], where)});
  }
  return rules;
}

std::string to_algorithm_file(std::span<const AlgorithmRule> rules) {
  std::string text =
      "# operation, largest group, most bytes (* is any), algorithm: the first line that holds\n";
  for (const AlgorithmRule& rule : rules) {
    const std::string ranks = rule.max_ranks == any_ranks ? "*" : std::to_string(rule.max_ranks);
    const std::string bytes = rule.max_bytes == any_bytes ? "*" : std::to_string(rule.max_bytes);
    text += fmt::format("{} {} {} {}\n", name_of(rule.operation), ranks, bytes, name_of(rule.algorithm));
  }
  return text;
}

}  // namespace athanor::parallel
