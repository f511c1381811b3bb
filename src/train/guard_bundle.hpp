// The file that describes a bad step for whoever looks into it: values, windows, samples, gradients.
#pragma once

#include <string>
#include <vector>

#include "data/batch.hpp"
#include "parallel/communicator.hpp"
#include "parallel/parameter_map.hpp"
#include "train/guard.hpp"
#include "train/step_metrics.hpp"

namespace athanor::train {

/// What a bundle tells of. The gradients of the step are still in the parameters' accumulators.
struct BundleInput {
  const GuardOptions& options;
  const GuardState& state;
  const StepMetrics& metrics;
  const std::string& reason;
  double loss_sum = 0.0;  ///< this rank's share
  const std::vector<data::Batch>* micro_batches = nullptr;
  const parallel::ParameterMap* parameters = nullptr;
  const parallel::Communicator* role = nullptr;
};

/// Writes <bundle_dir>/guard-ROLE-step-NNNNNNNN.json on rank 0 of the role; of every rank: its sample ids,
/// its share of the loss, the parameter with the first non-finite and the one with the largest gradient.
/// Returns the path, "" without a folder or when it cannot be written (a warning). Collective over the role.
std::string write_bundle(const BundleInput& input);

}  // namespace athanor::train
