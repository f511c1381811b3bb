#include "model/hf_names.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.hpp"
#include "model/transformer.hpp"

namespace athanor::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TransformerConfig sparse_config() {
  TransformerConfig config;
  config.vocab_size = 61;
  config.layers = 4;
  config.hidden = 32;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 12;
  config.rope_theta = 5000.0;
  config.max_seq = 64;
  config.ffn = 40;
  config.moe.num_experts = 6;
  config.moe.top_k = 2;
  config.moe.ffn = 24;
  config.moe.every = 2;
  return config;
}

TransformerConfig dense_config() {
  TransformerConfig config = sparse_config();
  config.moe = {};
  config.moe.num_experts = 0;
  config.tie_embeddings = true;
  return config;
}

// The message of the error that `work` throws; fails when it throws none of that type.
template <typename Error, typename Work>
std::string message_of(Work work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

std::string refusal(const json& config) {
  return message_of<base::DataError>([&] { read_hf_config(config, "config.json"); });
}

TEST(HfNames, ParameterShapesAreThoseOfTheModel) {
  const parallel::ProcessGrid grid;
  for (const TransformerConfig& config : {sparse_config(), dense_config()}) {
    parallel::ParameterMap parameters({.seed = 1, .dtype = at::kFloat});
    const Transformer model(config, parameters, grid);
    std::map<std::string, std::vector<std::int64_t>> expected;
    for (const auto& parameter : parameters.all()) {
      expected[parameter->name] = parameter->shard.global_shape;
    }
    std::map<std::string, std::vector<std::int64_t>> shapes;
    for (const ParameterShape& parameter : parameter_shapes(config)) {
      shapes[parameter.name] = parameter.shape;
    }
    EXPECT_EQ(shapes, expected);
  }
}

TEST(HfNames, TheirTensorsCoverOursOnce) {
  for (const TransformerConfig& config : {sparse_config(), dense_config()}) {
    for (const HfExpertNames experts : {HfExpertNames::per_expert, HfExpertNames::fused}) {
      std::map<std::string, std::vector<int>> holders;
      for (const ParameterShape& parameter : parameter_shapes(config)) {
        holders[parameter.name].assign(static_cast<std::size_t>(parameter.numel()), 0);
      }
      std::set<std::string> names;
      const std::vector<HfTensor> tensors = hf_tensors(config, experts);
      for (const HfTensor& tensor : tensors) {
        EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
        for (std::int64_t i = 0; i < tensor.numel(); ++i) {
          ++holders.at(tensor.parameter).at(static_cast<std::size_t>(tensor.first + i));
        }
      }
      for (const auto& [name, counts] : holders) {
        EXPECT_EQ(std::set<int>(counts.begin(), counts.end()), std::set<int>{1}) << name;
      }
      EXPECT_EQ(count_hf_tensors(config, experts), static_cast<std::int64_t>(tensors.size()));
    }
  }
}

TEST(HfNames, PartsOfAParameterLieWhereTheModelHasThem) {
  std::map<std::string, HfTensor> tensors;
  for (const HfTensor& tensor : hf_tensors(sparse_config(), HfExpertNames::per_expert)) {
    tensors[tensor.name] = tensor;
  }
  const HfTensor& value = tensors.at("model.layers.0.self_attn.v_proj.weight");
  EXPECT_EQ(value.parameter, "layers.0.attention.kv.weight");
  EXPECT_EQ(value.first, 2 * 12 * 32);
  const HfTensor& up = tensors.at("model.layers.1.mlp.experts.3.up_proj.weight");
  EXPECT_EQ(up.parameter, "layers.1.moe.experts.gate_up");
  EXPECT_EQ(up.shape, (std::vector<std::int64_t>{24, 32}));
  EXPECT_EQ(up.first, (3 * 2 + 1) * 24 * 32);
  EXPECT_EQ(tensors.at("model.layers.1.mlp.experts.5.down_proj.weight").first, 5 * 32 * 24);
  EXPECT_FALSE(tensors.contains("model.layers.1.mlp.gate_proj.weight"));
  EXPECT_EQ(tensors.at("model.layers.2.mlp.up_proj.weight").first, 40 * 32);
}

TEST(HfConfig, ReadsBackWhatItWrites) {
  for (const TransformerConfig& config : {sparse_config(), dense_config()}) {
    const json written = make_hf_config(config, {"bfloat16", 7});
    EXPECT_EQ(written["dtype"], "bfloat16");
    EXPECT_EQ(written["eos_token_id"], 7);
    EXPECT_TRUE(describe_same_model(read_hf_config(written, "config.json"), config));
  }
  EXPECT_EQ(make_hf_config(sparse_config(), {})["model_type"], "qwen3_moe");
  EXPECT_EQ(make_hf_config(dense_config(), {})["architectures"], json::array({"Qwen3ForCausalLM"}));
  EXPECT_TRUE(make_hf_config(dense_config(), {})["eos_token_id"].is_null());
}

TEST(HfConfig, ReadsOlderSpellingsAndDefaults) {
  const TransformerConfig config = read_hf_config(
      json::parse(
          R"({"model_type": "qwen3_moe", "num_experts": 16, "rope_theta": 1000000, "rope_scaling": null,
                      "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2})"),
      "config.json");
  EXPECT_EQ(config.moe.num_experts, 16);
  EXPECT_EQ(config.rope_theta, 1e6);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.moe.top_k, 8);
  EXPECT_FALSE(config.moe.normalize_top_k);
  EXPECT_EQ(config.vocab_size, 151936);
  const TransformerConfig dense = read_hf_config(json::parse(R"({"model_type": "qwen3"})"), "config.json");
  EXPECT_EQ(dense.head_dim, 128);
  EXPECT_EQ(dense.moe.num_experts, 0);
}

TEST(HfConfig, FindsThePeriodOfSparseLayers) {
  json config = make_hf_config(sparse_config(), {});
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = {0, 2};
  EXPECT_EQ(read_hf_config(config, "").moe.every, 2);
  config["mlp_only_layers"] = {0, 1, 2, 3};
  EXPECT_EQ(read_hf_config(config, "").moe.num_experts, 0);
  config["mlp_only_layers"] = {1};
  EXPECT_THAT(refusal(config), HasSubstr("mlp_only_layers=[1]"));
}

TEST(HfConfig, RefusesWhatIsNotKnownHere) {
  const json good = make_hf_config(sparse_config(), {});
  const std::vector<std::pair<std::string, json>> bad = {
      {"model_type", "llama"},
      {"model_type", nullptr},
      {"architectures", {"Qwen3MoeForSequenceClassification"}},
      {"hidden_act", "gelu"},
      {"attention_bias", true},
      {"use_sliding_window", true},
      {"quantization_config", {{"bits", 4}}},
      {"layer_types", {"sliding_attention"}},
      {"rope_scaling", {{"type", "yarn"}}},
      {"rope_parameters", {{"rope_type", "linear"}, {"factor", 2.0}}},
      {"rope_parameters", {1, 2}},
      {"hidden_size", 0},
      {"hidden_size", 1e300},
      {"hidden_size", "32"},
      {"num_hidden_layers", std::int64_t{1} << 40},
      {"num_key_value_heads", 3},
      {"head_dim", 7},
      {"num_experts_per_tok", 7},
      {"rms_norm_eps", -1.0},
      {"tie_word_embeddings", 1},
  };
  for (const auto& [key, value] : bad) {
    json config = good;
    config[key] = value;
    EXPECT_THAT(refusal(config), HasSubstr(key)) << value;
  }
  EXPECT_THAT(refusal(json::array()), HasSubstr("not a JSON object"));
}

TEST(HfConfig, RefusesToExportWhatIsNotKnownThere) {
  EXPECT_NO_THROW(check_hf_equivalent(sparse_config()));
  EXPECT_NO_THROW(check_hf_equivalent(dense_config()));
  using Change = std::pair<std::string, void (*)(TransformerConfig&)>;
  const std::vector<Change> changes = {
      {"model.qk_norm", [](TransformerConfig& c) { c.qk_norm = false; }},
      {"moe.shared_experts", [](TransformerConfig& c) { c.moe.shared_experts = 1; }},
      {"moe.score", [](TransformerConfig& c) { c.moe.score = moe::RouterScore::sigmoid; }},
      {"moe.group_top_k",
       [](TransformerConfig& c) {
         c.moe.groups = 3;
         c.moe.group_top_k = 1;
       }},
      {"moe.capacity_factor", [](TransformerConfig& c) { c.moe.capacity_factor = 1.25; }},
  };
  for (const auto& [key, change] : changes) {
    TransformerConfig config = sparse_config();
    change(config);
    EXPECT_THAT(message_of<base::ConfigError>([&] { check_hf_equivalent(config); }), HasSubstr(key));
  }
  TransformerConfig harmless = sparse_config();
  harmless.dropout = 0.1;
  harmless.moe.groups = 2;
  EXPECT_NO_THROW(check_hf_equivalent(harmless));
}

}  // namespace
}  // namespace athanor::model
