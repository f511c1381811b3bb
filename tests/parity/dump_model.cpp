// parity_dump FOLDER: writes, for each of a few small f32 models, its parameters, and for fixed tokens its
// logits, loss, gradients and generated texts, as raw little-endian files with a manifest.json, into
// FOLDER/<case>/. transformers_parity.py compares them with Hugging Face's Qwen3-MoE and Qwen3.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "infer/generator.hpp"
#include "infer/token_batch.hpp"
#include "model/transformer.hpp"

namespace athanor {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t num_sequences = 3;
constexpr std::int64_t seq = 19;

struct Case {
  std::string name;
  model::TransformerConfig config;
};

model::TransformerConfig base_config() {
  model::TransformerConfig config;
  config.vocab_size = 61;
  config.layers = 2;
  config.hidden = 32;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 12;
  config.max_seq = 64;
  config.rope_theta = 5000.0;
  config.ffn = 40;
  config.init_std = 0.15;  // wide: logits far enough apart for choices to be the same in both programs
  config.moe.num_experts = 8;
  config.moe.top_k = 2;
  config.moe.ffn = 24;
  config.moe.balance = {};
  return config;
}

std::vector<Case> make_cases() {
  Case untied{"moe_untied", base_config()};
  Case tied{"moe_tied", base_config()};
  tied.config.tie_embeddings = true;
  tied.config.kv_heads = 4;
  tied.config.head_dim = 0;
  tied.config.moe.normalize_top_k = false;
  tied.config.moe.top_k = 3;
  Case alternating{"moe_every_second_layer", base_config()};
  alternating.config.layers = 4;
  alternating.config.moe.every = 2;
  alternating.config.kv_heads = 1;
  Case dense{"dense", base_config()};
  dense.config.moe.num_experts = 0;
  dense.config.layers = 3;
  return {untied, tied, alternating, dense};
}

// Writes tensors of one case and lists them.
class Folder {
 public:
  explicit Folder(const fs::path& path) : path_(path) { fs::create_directories(path); }

  Json write(const std::string& name, const at::Tensor& tensor) const {
    const at::Tensor plain = tensor.detach().to(at::kFloat).contiguous();
    std::ofstream file(path_ / (name + ".f32"), std::ios::binary);
    file.write(static_cast<const char*>(plain.const_data_ptr()),
               static_cast<std::streamsize>(plain.nbytes()));
    if (!file) {
      throw base::IoError("{} cannot be written (disk full?) free some space", (path_ / name).string());
    }
    return {{"name", name}, {"shape", plain.sizes().vec()}};
  }
  void write_manifest(const Json& manifest) const {
    std::ofstream(path_ / "manifest.json") << manifest.dump(1) << '\n';
  }

 private:
  fs::path path_;
};

Json describe(const model::TransformerConfig& config) {
  return {{"vocab_size", config.vocab_size},
          {"layers", config.layers},
          {"hidden", config.hidden},
          {"heads", config.heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.resolved_head_dim()},
          {"rope_theta", config.rope_theta},
          {"max_seq", config.max_seq},
          {"tie_embeddings", config.tie_embeddings},
          {"norm_eps", config.norm_eps},
          {"ffn", config.ffn},
          {"experts", config.moe.num_experts},
          {"top_k", config.moe.top_k},
          {"expert_ffn", config.moe.ffn},
          {"normalize_top_k", config.moe.normalize_top_k},
          {"every", config.moe.every}};
}

std::vector<std::vector<std::int64_t>> make_tokens(std::int64_t vocab) {
  const base::PhiloxStream random(1, base::RandomPurpose::test, "parity tokens");
  std::vector<std::vector<std::int64_t>> rows(num_sequences);
  for (std::int64_t row = 0; row < num_sequences; ++row) {
    for (std::int64_t i = 0; i < seq; ++i) {
      const std::uint64_t bits = random.bits(static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(i));
      rows[static_cast<std::size_t>(row)].push_back(
          static_cast<std::int64_t>(bits % static_cast<std::uint64_t>(vocab)));
    }
  }
  return rows;
}

// Labels as Hugging Face shifts them: the next token, none for the last position.
at::Tensor shifted(const at::Tensor& tokens_BS) {
  at::Tensor labels = at::full_like(tokens_BS, nn::ignored_label);
  labels.narrow(1, 0, seq - 1).copy_(tokens_BS.narrow(1, 1, seq - 1));
  return labels;
}

// Norm weights start at one and would hide a forgotten multiplication.
void spread_norms(const parallel::ParameterMap& parameters) {
  for (const auto& parameter : parameters.all()) {
    if (parameter->init.kind == parallel::InitialValue::Kind::constant) {
      const base::PhiloxStream random(2, base::RandomPurpose::test, parameter->name);
      float* data = parameter->value.mutable_data_ptr<float>();
      for (std::int64_t i = 0; i < parameter->value.numel(); ++i) {
        data[i] += static_cast<float>(0.3 * random.normal(static_cast<std::uint64_t>(i)));
      }
    }
  }
}

Json loss_and_gradients(const model::Transformer& model, const parallel::ParameterMap& parameters,
                        const nn::TokenBatch& batch, const Folder& folder, Json& manifest) {
  for (const auto& parameter : parameters.all()) {
    parameter->grad.attach(at::empty_like(parameter->value, at::kFloat).detach());
  }
  model::ForwardContext context;
  context.valid_labels = static_cast<double>(num_sequences * (seq - 1));
  context.routed_tokens = static_cast<double>(num_sequences * seq);
  context.num_sequences = static_cast<double>(num_sequences);
  const at::Tensor h_BsD = model.blocks(model.embed(batch, context), batch, context).h_BsD;
  const nn::CrossEntropy loss = model.head_loss(h_BsD, batch);
  loss.sum.backward();
  manifest["loss"] = loss.sum.item<double>() / context.valid_labels;
  std::vector<at::Tensor> logits;
  for (std::int64_t position = 0; position < seq; ++position) {
    logits.push_back(model.head_logits(h_BsD, position));
  }
  manifest["logits"] = folder.write("logits", at::stack(logits, 1));
  Json list = Json::array();
  for (const auto& parameter : parameters.all()) {
    parameter->grad.finish();
    Json entry = folder.write(parameter->name, parameter->value);
    folder.write(parameter->name + ".grad", parameter->grad.buffer() / context.valid_labels);
    list.push_back(entry);
  }
  return list;
}

Json generated(const model::Transformer& model, const std::vector<std::vector<std::int64_t>>& prompts,
               std::int64_t beams) {
  infer::GenerationOptions options;
  options.sampler.temperature = 0.0;
  options.sampler.top_k = 0;
  options.beams = beams;
  options.max_new_tokens = 24;
  options.end_of_document = 5;
  std::vector<infer::GenerationRequest> requests;
  for (const auto& tokens : prompts) {
    requests.push_back({requests.size(), {tokens.begin(), tokens.begin() + 7}});
  }
  const parallel::ProcessGrid grid;
  Json texts = Json::array();
  for (const auto& text : infer::Generator(model, grid, options).generate(requests, nullptr)) {
    texts.push_back({{"tokens", text.tokens},
                     {"reason", infer::to_string(text.reason)},
                     {"log_probability", text.log_probability},
                     {"beam_score", text.beam_score}});
  }
  return {{"beams", beams},
          {"prompt_tokens", 7},
          {"max_new_tokens", options.max_new_tokens},
          {"end_of_document", options.end_of_document},
          {"repetition_penalty", options.sampler.repetition_penalty},
          {"length_penalty", options.length_penalty},
          {"texts", texts}};
}

void dump(const Case& item, const fs::path& root) {
  const parallel::ProcessGrid grid;
  parallel::ParameterMap parameters({7, at::kFloat, true});
  const model::Transformer model(item.config, parameters, grid);
  {
    at::NoGradGuard no_grad;
    spread_norms(parameters);
  }
  const Folder folder(root / item.name);
  const auto tokens = make_tokens(item.config.vocab_size);
  nn::TokenBatch batch = infer::make_token_batch(tokens, seq, 0, 1);
  batch.labels_BS = shifted(batch.tokens_BS);
  Json manifest;
  manifest["config"] = describe(item.config);
  manifest["tokens"] = tokens;
  manifest["parameters"] = loss_and_gradients(model, parameters, batch, folder, manifest);
  manifest["generation"] = {generated(model, tokens, 1), generated(model, tokens, 4)};
  folder.write_manifest(manifest);
}

}  // namespace
}  // namespace athanor

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: parity_dump FOLDER\n";
    return 64;
  }
  try {
    for (const athanor::Case& item : athanor::make_cases()) {
      athanor::dump(item, argv[1]);
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 70;
  }
  return 0;
}
