// `athanor tokenize`.
#include "data/tokenize.hpp"

#include <fmt/format.h>

#include <sstream>

#include "app/commands.hpp"

namespace athanor::app {
namespace {

std::vector<std::string> split_list(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) {
    parts.push_back(part);
  }
  return parts;
}

std::string to_text(const data::TokenizeResult& result) {
  std::string text = fmt::format("read {} files, {} bytes, {} documents", result.text.files,
                                 result.text.bytes, result.text.documents);
  if (result.text.invalid_utf8 > 0) {
    text += fmt::format(" ({} malformed UTF-8 parts replaced)", result.text.invalid_utf8);
  }
  text += fmt::format("\n{} tokenizer {}: {} tokens\n", result.trained ? "trained" : "used", result.tokenizer,
                      result.vocab_size);
  for (const data::TokenizeOutput& output : result.outputs) {
    text += fmt::format("wrote {}.bin and .idx: {} documents, {} tokens\n", output.prefix, output.documents,
                        output.tokens);
  }
  return text + fmt::format("{:.1f} s\n", result.seconds);
}

nlohmann::json to_json(const data::TokenizeResult& result) {
  nlohmann::json json = {{"tokenizer", result.tokenizer},
                         {"trained", result.trained},
                         {"vocab_size", result.vocab_size},
                         {"end_of_document", result.end_of_document},
                         {"files", result.text.files},
                         {"bytes", result.text.bytes},
                         {"documents", result.text.documents},
                         {"invalid_utf8", result.text.invalid_utf8},
                         {"tokens", result.tokens},
                         {"seconds", result.seconds}};
  json["outputs"] = nlohmann::json::array();
  for (const data::TokenizeOutput& output : result.outputs) {
    json["outputs"].push_back(
        {{"prefix", output.prefix}, {"documents", output.documents}, {"tokens", output.tokens}});
  }
  return json;
}

}  // namespace

CommandResult run_tokenize(const config::RunConfig& config, const parallel::Communicator&) {
  data::TokenizeOptions options = config.tokenize.options;
  options.inputs = split_list(config.tokenize.input);
  const data::TokenizeResult result = data::run_tokenize(options);
  return {to_text(result), to_json(result)};
}

}  // namespace athanor::app
