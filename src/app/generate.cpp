// `athanor generate`.
#include "infer/generator.hpp"

#include <optional>

#include "app/commands.hpp"
#include "app/launch.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "base/stopwatch.hpp"
#include "data/tokenizer.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::app {
namespace {

infer::GenerationOptions make_options(const config::GenerateSection& generate) {
  infer::GenerationOptions options;
  options.sampler.temperature = generate.temperature;
  options.sampler.top_k = generate.top_k;
  options.sampler.top_p = generate.top_p;
  options.sampler.repetition_penalty = generate.repetition_penalty;
  options.sampler.seed = generate.seed;
  options.max_new_tokens = generate.max_new_tokens;
  options.min_new_tokens = generate.min_new_tokens;
  options.beams = generate.beams;
  options.length_penalty = generate.length_penalty;
  return options;
}

data::Tokenizer open_tokenizer(const config::RunConfig& config) {
  if (config.data.tokenizer.empty()) {
    throw base::ConfigError(
        "data.tokenizer is empty (neither the checkpoint nor you named one) give "
        "--data.tokenizer=MODEL");
  }
  return data::Tokenizer(config.data.tokenizer);
}

}  // namespace

void validate_generation(const config::RunConfig& config) {
  make_options(config.generate).validate();
}

CommandResult run_generate(const config::RunConfig& config, const parallel::Communicator& world) {
  std::optional<data::Tokenizer> tokenizer;
  parallel::run_agreed(world, [&] { tokenizer.emplace(open_tokenizer(config)); });
  infer::GenerationOptions options = make_options(config.generate);
  options.end_of_document = tokenizer->end_of_document();
  infer::GenerationRequest request;
  for (const std::int32_t id : tokenizer->encode(config.generate.prompt)) {
    request.prompt.push_back(id);
  }
  const parallel::RoleSplit roles = split_roles(config, world);
  const LoadedModel loaded(config, roles.comm());
  const infer::Generator generator(loaded.model(), loaded.grid(), options);
  const base::Stopwatch watch;
  const infer::GenerationResult generated = generator.generate({&request, 1}, &loaded.balance()).at(0);
  const double seconds = watch.seconds();

  // Decoded with the prompt, so that white space between the two is right.
  std::vector<std::int32_t> ids(request.prompt.begin(), request.prompt.end());
  ids.insert(ids.end(), generated.tokens.begin(), generated.tokens.end());
  const std::string text = tokenizer->decode(ids);
  CommandResult result;
  result.text = text + "\n";
  result.json = {{"prompt", config.generate.prompt},
                 {"text", text},
                 {"tokens", generated.tokens},
                 {"finish_reason", infer::to_string(generated.reason)}};
  put_number(result.json, "seconds", seconds);
  put_number(result.json, "log_probability", generated.log_probability);
  if (config.generate.beams > 1) {
    put_number(result.json, "beam_score", generated.beam_score);
  }
  return result;
}

}  // namespace athanor::app
