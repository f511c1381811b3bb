// Compares what several ranks hold alike, and what a rank holds with what it held: finds a weight that
// changed silently, names the rank, and takes the value from a replica that is whole.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"
#include "parallel/reduction_groups.hpp"

namespace athanor::train {

/// Hashes are XXH3-64, one for each parameter's slice. Parameters change in an update only: between the
/// update and the next one a rank's own hash must stay, so a slice that only one rank holds is watched too,
/// and with two replicas it is known which of them is damaged. With a sharded optimizer every update spreads
/// the owner's values, damaged or not: a comparison just before an update sees what a step has damaged.
class ReplicaCheck {
 public:
  /// Both outlive this. The groups are those of the optimizer, in its order.
  ReplicaCheck(const std::vector<parallel::ReductionGroup>& groups, const parallel::Communicator& role);

  /// Notes the parameters as they are now, after an update.
  void remember();
  /// Parameters were written by something else than an update.
  void forget() { remembered_.clear(); }

  struct Result {
    std::int64_t repaired = 0;    ///< slices that were restored, over the role
    std::int64_t unrepaired = 0;  ///< slices of which no whole one is left, or nobody knows which is whole
    std::string text;             ///< which ranks and parameters; empty: all is well. The same on all ranks
  };
  /// Compares, and restores where a whole slice is left. Collective over the role.
  Result check();

 private:
  using Hashes = std::vector<std::uint64_t>;
  Hashes hash_group(const parallel::ReductionGroup& group) const;
  std::string compare(const parallel::ReductionGroup& group, const Hashes& now, const Hashes* before,
                      Result& result) const;

  const std::vector<parallel::ReductionGroup>* groups_;
  const parallel::Communicator* role_;
  std::vector<Hashes> remembered_;  // by group; empty: nothing is known
};

/// Which of the holders of a slice has the value to believe: the most frequent one among those whose hash is
/// what it was (`is_same`); the lowest such holder. -1: there is none, or two values are as frequent.
int choose_source(const std::vector<std::uint64_t>& hashes, const std::vector<bool>& is_same);

}  // namespace athanor::train
