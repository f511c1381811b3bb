// What a configuration cannot ask for, found before any work.
#pragma once

#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"

namespace athanor::config {

/// Throws ConfigError for the first value or combination that cannot be done on `world_size` ranks, naming
/// key, value, reason and way out (distill: and the role). Looks at no file. evaluate and generate: call it
/// with the checkpoint's model filled in (resolve_with_base). A vocab_size of 0 stands for the tokenizer's,
/// which must then be named.
void validate(const RunConfig& config, int world_size);

/// The degrees of parallelism of a role on the `ranks` that are its own (resolve_ranks of roles.hpp); throws
/// ConfigError when they do not fit.
parallel::ParallelDims resolve_dims(const RoleConfig& role, int ranks);

/// Sequences of one forward pass of a replica: batch.micro, or global / dp.
std::int64_t resolve_micro_batch(const RunConfig& config, const RoleConfig& role,
                                 const parallel::ParallelDims& dims);

}  // namespace athanor::config
