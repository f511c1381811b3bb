// parity_probe: what the comparison with Hugging Face needs to see of this program.
//   parity_probe logits CHECKPOINT TOKENS.json OUT.f32      logits [rows, seq, vocab] of the teacher, in f32
//   parity_probe ids TOKENIZER.model TEXTS.json OUT.json    [[ids, decoded text], ...]
//   parity_probe write TOKENS.json PREFIX                   a token file, one document for each row
//   parity_probe batches PREFIX SEQ SEED GLOBAL STEPS OUT.json   [step][row][seq + 1] in training order
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "config/command_line.hpp"
#include "config/ini.hpp"
#include "data/sampler.hpp"
#include "data/token_file.hpp"
#include "data/tokenizer.hpp"
#include "infer/token_batch.hpp"
#include "train/state_dict.hpp"

namespace athanor {
namespace {

using Arguments = std::vector<std::string>;
using Json = nlohmann::json;
using Rows = std::vector<std::vector<std::int64_t>>;

Json read_json(const std::string& path) {
  return Json::parse(std::ifstream(path));
}

void write_json(const std::string& path, const Json& json) {
  std::ofstream(path) << json << '\n';
}

void write_logits(const Arguments& arguments) {
  const checkpoint::CheckpointReader reader(arguments.at(0));
  const config::RunConfig stored = config::resolve_with_base(
      config::Command::evaluate, config::parse_ini(reader.manifest().config, arguments.at(0)), {});
  const parallel::ProcessGrid grid;
  parallel::ParameterMap parameters({.seed = 0, .dtype = at::kFloat});
  const model::Transformer model(stored.roles[0].model, parameters, grid);
  moe::BalanceState balance = model.make_balance_state();
  train::load_weights(reader, "teacher", parameters, balance);

  const at::NoGradGuard no_grad;
  const Rows rows = read_json(arguments.at(1));
  const auto seq = static_cast<std::int64_t>(rows.at(0).size());
  const nn::TokenBatch batch = infer::make_token_batch(rows, seq, 0, 1);
  model::ForwardContext context;
  context.training = false;
  context.balance = &balance;
  const at::Tensor h_BsD = model.blocks(model.embed(batch, context), batch, context).h_BsD;
  std::vector<at::Tensor> logits;
  for (std::int64_t position = 0; position < seq; ++position) {
    logits.push_back(model.head_logits(h_BsD, position));
  }
  const at::Tensor all_BSV = at::stack(logits, 1).to(at::kFloat).contiguous();
  std::ofstream(arguments.at(2), std::ios::binary)
      .write(static_cast<const char*>(all_BSV.const_data_ptr()),
             static_cast<std::streamsize>(all_BSV.nbytes()));
}

void write_ids(const Arguments& arguments) {
  const data::Tokenizer tokenizer(arguments.at(0));
  Json out = Json::array();
  for (const std::string text : read_json(arguments.at(1))) {
    const std::vector<std::int32_t> ids = tokenizer.encode(text);
    out.push_back({ids, tokenizer.decode(ids)});
  }
  write_json(arguments.at(2), out);
}

void write_tokens(const Arguments& arguments) {
  data::TokenFileWriter writer(arguments.at(1), data::TokenType::int32);
  for (const std::vector<std::int32_t> row : read_json(arguments.at(0))) {
    writer.add(row);
    writer.end_document();
  }
  writer.finish();
}

// The rows of the batches that training reads, last label included.
void write_batches(const Arguments& arguments) {
  const std::int64_t seq = std::stoll(arguments.at(1));
  const std::int64_t global = std::stoll(arguments.at(3));
  const data::Dataset dataset(
      {.sources = data::parse_sources(arguments.at(0)), .seq = seq, .seed = std::stoull(arguments.at(2))});
  const data::BatchSampler sampler(dataset, {.global_batch = global, .micro_batch = global, .replica = {}});
  Json steps = Json::array();
  data::DataCursor cursor;
  for (std::int64_t step = 0; step < std::stoll(arguments.at(4)); ++step) {
    const data::Batch batch = sampler.read_step(cursor).at(0);
    Json rows = Json::array();
    for (std::int64_t row = 0; row < batch.rows; ++row) {
      const auto first = batch.tokens.begin() + row * seq;
      std::vector<std::int32_t> tokens(first, first + seq);
      tokens.push_back(batch.labels.at(static_cast<std::size_t>((row + 1) * seq - 1)));
      rows.push_back(tokens);
    }
    steps.push_back(rows);
    cursor = sampler.advance(cursor);
  }
  write_json(arguments.at(5), steps);
}

void run(const std::string& command, const Arguments& arguments) {
  if (command == "logits") {
    write_logits(arguments);
  } else if (command == "ids") {
    write_ids(arguments);
  } else if (command == "write") {
    write_tokens(arguments);
  } else if (command == "batches") {
    write_batches(arguments);
  } else {
    throw base::ConfigError("{} is no command of parity_probe (see the head of its source)", command);
  }
}

}  // namespace
}  // namespace athanor

int main(int argc, char** argv) {
  try {
    athanor::run(argc > 1 ? argv[1] : "", {argv + std::min(argc, 2), argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 70;
  }
  return 0;
}
