// `athanor evaluate`.
#include "infer/evaluator.hpp"

#include <fmt/format.h>

#include <optional>

#include "app/commands.hpp"
#include "app/launch.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "config/validate.hpp"
#include "data/dataset.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

data::Dataset open_dataset(const config::RunConfig& config) {
  data::Dataset dataset({.sources = data::parse_sources(config.data.valid),
                         .seq = config.batch.seq,
                         .seed = config.run.seed,
                         .reset_attention = config.data.reset_attention});
  const std::int64_t vocab_size = config.roles[0].model.vocab_size;
  if (dataset.max_token_id() >= vocab_size) {
    throw base::DataError(
        "data.valid={} holds token id {} (the model's vocabulary has {}) use files of the model's "
        "tokenizer",
        config.data.valid, dataset.max_token_id(), vocab_size);
  }
  return dataset;
}

nlohmann::json to_json(const infer::DomainLoss& loss) {
  nlohmann::json json = {{"tokens", loss.tokens}};
  put_number(json, "loss", loss.loss);
  put_number(json, "perplexity", loss.perplexity);
  return json;
}

}  // namespace

CommandResult run_evaluate(const config::RunConfig& config, const parallel::Communicator& world) {
  std::optional<data::Dataset> dataset;
  parallel::run_agreed(world, [&] { dataset.emplace(open_dataset(config)); });
  const parallel::RoleSplit roles = split_roles(config, world);
  const LoadedModel loaded(config, roles.comm());
  const parallel::ParallelDims& dims = loaded.grid().dims();
  const infer::Evaluator evaluator(
      loaded.model(), loaded.grid(),
      {.rows_per_replica = config::resolve_micro_batch(config, config.roles[0], dims),
       .max_sequences = config.train.eval_batches * config.batch.global});
  const infer::EvaluationResult evaluation = evaluator.evaluate(*dataset, &loaded.balance());

  CommandResult result{"", to_json(evaluation.total)};
  result.json["domains"] = nlohmann::json::object();
  for (const infer::DomainLoss& domain : evaluation.domains) {
    result.json["domains"][domain.domain] = to_json(domain);
    result.text += fmt::format("{}: loss {:.4f}, perplexity {:.2f} over {} tokens\n", domain.domain,
                               domain.loss, domain.perplexity, domain.tokens);
  }
  result.text += fmt::format("all: loss {:.4f}, perplexity {:.2f} over {} tokens\n", evaluation.total.loss,
                             evaluation.total.perplexity, evaluation.total.tokens);
  return result;
}

}  // namespace athanor::app
