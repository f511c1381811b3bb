// `plan.*`: the machine that --dry-run plans for, and what memory a rank has there.
#pragma once

namespace athanor::config {

/// What to do when a rank's memory suffices for even routing, but not when every token goes to one rank.
enum class WorstCase { refuse, warn };

struct PlanSection {
  double memory_bytes = 0.0;  ///< of a rank; 0: what this machine has free, shared by its ranks
  WorstCase worst_case = WorstCase::refuse;
  double flops_per_s = 0.0;       ///< peak of a rank in the compute type; 0: no times are printed
  double gemm_efficiency = 1.0;   ///< share of that peak which matrix products reach
  double link_bytes_per_s = 0.0;  ///< of a rank to other nodes, each way; 0: its exchanges take no time
  double node_bytes_per_s = 0.0;  ///< of a rank to ranks of its node, each way; 0: as between nodes
  int ranks_per_node = 0;         ///< 0: all ranks are on one node
};

}  // namespace athanor::config
