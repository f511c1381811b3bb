// Who works with whom inside a role: degrees of parallelism, coordinates and one communicator for each axis.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"

namespace athanor::parallel {

/// Axes of the process grid. pipeline > data > context > tensor in slowness; `expert` and `expert_data`
/// re-divide the data x tensor plane.
enum class Axis { pipeline, data, context, tensor, expert, expert_data };

/// Degrees of parallelism of one role: pp * dp * cp * tp ranks; ep divides dp * tp. pp = cp = 1 for now.
struct ParallelDims {
  int pp = 1;
  int dp = 1;
  int cp = 1;
  int tp = 1;
  int ep = 1;

  int num_ranks() const { return pp * dp * cp * tp; }
  /// Throws ConfigError naming all factors and the product unless the degrees fit `role_size` ranks.
  void validate(int role_size) const;
  /// dp from the number of ranks: role_size / (pp * cp * tp); throws ConfigError when it does not divide.
  static ParallelDims from_role_size(int role_size, int tp, int ep);
};

/// Coordinates of one rank: pure arithmetic, testable for any size without MPI.
struct RankCoordinates {
  int pp_rank = 0;
  int dp_rank = 0;
  int cp_rank = 0;
  int tp_rank = 0;
  int ep_rank = 0;           ///< role_rank mod ep
  int expert_data_rank = 0;  ///< role_rank / ep
  static RankCoordinates of(const ParallelDims& dims, int role_rank);
};

/// The communicators of one rank's place in its role. Built collectively, in one order on all ranks of the
/// role.
class ProcessGrid {
 public:
  /// A grid of one rank without MPI.
  ProcessGrid();
  /// Collective over `role`, whose ranks it duplicates. Throws ConfigError when dims do not fit.
  ProcessGrid(const ParallelDims& dims, const Communicator& role);

  const ParallelDims& dims() const { return dims_; }
  const RankCoordinates& coordinates() const { return coordinates_; }
  const Communicator& role() const { return role_; }
  const Communicator& comm(Axis axis) const { return axes_[static_cast<std::size_t>(axis)]; }
  int rank(Axis axis) const { return comm(axis).rank(); }
  int size(Axis axis) const { return comm(axis).size(); }
  /// "dp 4 x tp 2, ep 8 (expert-data 1)" for logs and --dry-run.
  std::string describe() const;

 private:
  ParallelDims dims_;
  RankCoordinates coordinates_;
  Communicator role_;
  std::array<Communicator, 6> axes_;
};

/// What a role of a run is for.
enum class RoleKind { teacher, student };

/// One role: a name, a kind and how many ranks it has.
struct RoleRanks {
  std::string name;
  RoleKind kind = RoleKind::teacher;
  int ranks = 1;
};

/// Splits the world into roles: the first role has world ranks [0, ranks), the next the ones after it, ...
/// Collective over `world`; throws ConfigError when the ranks do not add up.
class RoleSplit {
 public:
  RoleSplit(const Communicator& world, std::vector<RoleRanks> roles);
  const std::vector<RoleRanks>& roles() const { return roles_; }
  /// Index in roles() of this rank's role.
  int role_index() const { return role_index_; }
  const RoleRanks& role() const { return roles_[static_cast<std::size_t>(role_index_)]; }
  const Communicator& comm() const { return comm_; }
  /// World rank of role-rank 0 of role `index`.
  int first_world_rank(int index) const;

 private:
  std::vector<RoleRanks> roles_;
  int role_index_ = 0;
  Communicator comm_;
};

}  // namespace athanor::parallel
