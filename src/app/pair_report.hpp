// How well teacher and students go together: by arithmetic before the run, by its figures afterwards.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/commands.hpp"
#include "config/run_config.hpp"
#include "parallel/process_grid.hpp"
#include "train/pair_fit.hpp"

namespace athanor::app {

/// The tokenizers that the weights of teacher.init and student.init were trained with, against each other and
/// the run's; one that is known and another is refused with ConfigError, or logged when run.allow_mismatch
/// names data.tokenizer. Returns a line for people: "the run's", "unknown" of each. Reads manifests.
std::string check_tokenizers(const config::RunConfig& config);

/// Sizes, work and vocabulary of the pair, before anything has run: for --dry-run and the start of the log.
/// `ranks` of each role; model.vocab_size must be resolved.
CommandResult describe_pair(const config::RunConfig& config, const std::vector<int>& ranks);

/// Judges the pace of this rank's role; its first rank tells. `roles` is not kept.
train::PairFitOptions make_pair_fit_options(const parallel::RoleSplit& roles);

nlohmann::json to_json(const train::PairFigures& figures);

/// From the results of all roles, with "pace" (to_json above) in each: adds "pair" to result.json, and to the
/// text a table of teacher, student and change.
void add_pair_report(const config::RunConfig& config, CommandResult& result);

}  // namespace athanor::app
