#include "config/storage_checks.hpp"

#include "base/error.hpp"
#include "config/validate.hpp"
#include "config/value_text.hpp"

namespace athanor::config {
namespace {

using base::ConfigError;

void check_single_gradients(const RunConfig& config, const RoleConfig& role,
                            const parallel::ParallelDims& dims) {
  const std::string name = to_text(role.precision.store_gradients);
  const std::int64_t micro = resolve_micro_batch(config, role, dims);
  if (micro * dims.dp != config.batch.global) {
    throw ConfigError(
        "precision.store_gradients={} (batch.micro={}: a step of {} micro-batches sums their gradients, "
        "which "
        "takes more digits than FP8 has) set batch.micro=0 or {}, or precision.store_gradients=none",
        name, role.batch_micro, config.batch.global / dims.dp / micro, config.batch.global / dims.dp);
  }
  if (role.precision.store_gradients != optim::StoredGradients::all) {
    return;
  }
  if (role.model.tie_embeddings) {
    throw ConfigError(
        "precision.store_gradients=all (model.tie_embeddings=true: the embedding's gradient is the sum of "
        "two, "
        "which takes more digits than FP8 has) use precision.store_gradients=experts or "
        "model.tie_embeddings=false");
  }
  if (has_students(config.command) && role.kind == parallel::RoleKind::student) {
    throw ConfigError(
        "precision.store_gradients=all (a student's head has gradients from its labels and from its teacher, "
        "and their sum takes more digits than FP8 has) use precision.store_gradients=experts or none");
  }
}

}  // namespace

void check_storage(const RunConfig& config, const RoleConfig& role, const parallel::ParallelDims& dims) {
  const PrecisionSection& precision = role.precision;
  if (!precision.store_activations.empty() && precision.compute == base::ComputeType::f64) {
    throw ConfigError(
        "precision.store_activations={} (precision.compute=f64 keeps full values only) use none",
        to_text(precision.store_activations));
  }
  if (precision.store_gradients != optim::StoredGradients::none && !role.frozen) {
    check_single_gradients(config, role, dims);
  }
}

}  // namespace athanor::config
