// Which algorithm moves the bytes of a collective: a table in the source, measured with `athanor bench
// collectives`, that the configuration may override (parallel.collectives). Never decided by timings of the
// running job. The results have the same bits whichever is used.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace athanor::parallel {

class Communicator;

/// What is chosen for, by the bytes of: `exchange`, which is behind all_to_all_v, exchange_counts and
/// reduce_scatter_sum: what this rank sends to others; `all_gather`: all parts together; `all_reduce` (of
/// floats) and `broadcast`: the tensor; `barrier`: none.
enum class Operation { exchange, all_gather, all_reduce, broadcast, barrier };

/// `collective`: MPI's own. `at_once`: all messages under way together. `pairwise`: one partner after
/// another. `ring`: parts go from neighbour to neighbour. `binomial`: a tree of halves. `dissemination`:
/// log2(ranks) rounds. `gather`: everybody gets everything and adds all. `blocks`: everybody adds one block,
/// then the sums are gathered.
enum class Algorithm { collective, at_once, pairwise, ring, binomial, dissemination, gather, blocks };

inline constexpr int any_ranks = std::numeric_limits<int>::max();
inline constexpr std::int64_t any_bytes = std::numeric_limits<std::int64_t>::max();

/// Holds for groups of at most `max_ranks` and sizes of at most `max_bytes`.
struct AlgorithmRule {
  Operation operation = Operation::exchange;
  int max_ranks = any_ranks;
  std::int64_t max_bytes = any_bytes;
  Algorithm algorithm = Algorithm::at_once;

  bool operator==(const AlgorithmRule&) const = default;
};

std::span<const Operation> all_operations();
/// Those that can do it.
std::span<const Algorithm> algorithms_for(Operation operation);
std::string_view name_of(Operation operation);
std::string_view name_of(Algorithm algorithm);

/// Rules in order: the first that holds counts.
class AlgorithmTable {
 public:
  /// `first`, then the measured table of the source. Throws ConfigError for an algorithm that cannot do its
  /// operation, and for `collective` in an exchange of some sizes only: ranks of one exchange send different
  /// amounts, and those who call MPI's all-to-all would wait for the others for ever.
  explicit AlgorithmTable(std::vector<AlgorithmRule> first = {});

  Algorithm choose(Operation operation, int ranks, std::int64_t bytes) const;
  const std::vector<AlgorithmRule>& rules() const { return rules_; }

 private:
  std::vector<AlgorithmRule> rules_;
};

/// Whether a value of parallel.collectives names a file, and is not a list.
bool is_algorithm_file(const std::string& value);
/// Rules of a list of operation:algorithm, for all groups and sizes. Throws ConfigError naming the legal
/// ones.
std::vector<AlgorithmRule> parse_algorithm_list(const std::string& list);
/// Rules of a file's text: lines of operation, largest group, most bytes, algorithm, with * for any and # for
/// comments. Throws ConfigError naming file and line.
std::vector<AlgorithmRule> parse_algorithm_file(const std::string& text, const std::string& path);
/// The text that parse_algorithm_file reads back.
std::string to_algorithm_file(std::span<const AlgorithmRule> rules);

/// The table of a communicator and of all that come from one world; to be changed by all ranks alike, between
/// collectives. A null communicator's is never asked.
AlgorithmTable& algorithms_of(const Communicator& comm);
/// What the table of `comm` says for its size.
Algorithm chosen_algorithm(const Communicator& comm, Operation operation, std::int64_t bytes);

}  // namespace athanor::parallel
