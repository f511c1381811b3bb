// `athanor checkpoint export` and `import`.
#include <fmt/format.h>

#include <optional>

#include "app/checkpoint_export.hpp"
#include "app/checkpoint_import.hpp"
#include "app/commands.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "checkpoint/catalog.hpp"
#include "config/command_line.hpp"

namespace athanor::app {
namespace {

std::optional<checkpoint::ElementType> element_type(config::ExchangeType type) {
  switch (type) {
    case config::ExchangeType::stored:
      return std::nullopt;
    case config::ExchangeType::f32:
      return checkpoint::ElementType::f32;
    case config::ExchangeType::bf16:
      return checkpoint::ElementType::bf16;
  }
  throw base::InternalError("no such exchange type");
}

}  // namespace

CommandResult run_checkpoint_export(const config::RunConfig& config) {
  ExportOptions options;
  options.from = checkpoint::resolve_checkpoint(config.exchange.from);
  options.to = config.exchange.to;
  options.role = config.source.role;
  // The model as its run knew it: what evaluate would build.
  const config::Setting role{"role", options.role, "--role=" + options.role, true};
  const config::RunConfig stored =
      config::resolve_with_base(config::Command::evaluate, read_checkpoint_settings(options.from), {role});
  options.model = stored.roles[0].model;
  options.dtype = element_type(config.exchange.dtype);
  options.max_file_bytes = config.exchange.shard_bytes;
  const ExportResult result = export_to_hugging_face(options);
  return {
      fmt::format("{}: {} tensors in {} files, {:.1f} MB, {}{}\n", result.folder, result.tensors,
                  result.files, static_cast<double>(result.bytes) / 1e6, result.dtype,
                  result.has_tokenizer ? ", with the tokenizer" : ", without a tokenizer (the run has none)"),
      {{"path", result.folder},
       {"dtype", result.dtype},
       {"tensors", result.tensors},
       {"files", result.files},
       {"bytes", result.bytes},
       {"has_tokenizer", result.has_tokenizer}}};
}

CommandResult run_checkpoint_import(const config::RunConfig& config) {
  ImportOptions options;
  options.from = config.exchange.from;
  options.to = config.exchange.to;
  const ImportResult result = import_from_hugging_face(options);
  return {
      fmt::format(
          "{}: {:.1f} M parameters{}\n", result.checkpoint, static_cast<double>(result.parameters) / 1e6,
          result.has_sentencepiece ? "" : "; no SentencePiece tokenizer: text commands need data.tokenizer"),
      {{"path", result.checkpoint},
       {"parameters", result.parameters},
       {"has_sentencepiece", result.has_sentencepiece}}};
}

}  // namespace athanor::app
