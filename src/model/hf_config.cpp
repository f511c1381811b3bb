// config.json of Qwen3-MoE and Qwen3, as transformers 5 writes and reads it.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.hpp"
#include "model/hf_names.hpp"

namespace athanor::model {
namespace {

using Json = nlohmann::json;

// Beyond any model, and small enough that no product of extents overflows.
constexpr std::int64_t max_width = std::int64_t{1} << 22;
constexpr std::int64_t max_vocabulary = std::int64_t{1} << 31;
constexpr std::int64_t max_layers = 1 << 14;
constexpr std::int64_t max_experts = 1 << 14;

void refuse_if(bool refused, const std::string& key, const std::string& value, const std::string& reason) {
  if (refused) {
    throw base::ConfigError(
        "{}={} has no equivalent in Hugging Face's Qwen3-MoE and Qwen3 ({}) only models without it can be "
        "exported",
        key, value, reason);
  }
}

bool has_sparse_layers(const TransformerConfig& config) {
  return config.moe.num_experts > 0;
}

// The coefficient with which transformers' pooled balance loss pushes as hard as our `switch`, which is
// summed over layers and has 1/top_k; transformers' default without it.
double aux_loss_coefficient(const TransformerConfig& config) {
  if (!config.moe.uses(moe::BalanceKind::switch_loss)) {
    return 0.001;
  }
  const std::int64_t sparse_layers = config.layers / config.moe.every;
  return config.moe.balance_weight * static_cast<double>(sparse_layers) /
         static_cast<double>(config.moe.top_k);
}

void add_moe_keys(const TransformerConfig& config, Json& json) {
  json["decoder_sparse_step"] = config.moe.every;
  json["mlp_only_layers"] = Json::array();
  json["moe_intermediate_size"] = config.moe.ffn;
  json["norm_topk_prob"] = config.moe.normalize_top_k;
  json["num_experts_per_tok"] = config.moe.top_k;
  // Readers before and since transformers 5.
  json["num_experts"] = config.moe.num_experts;
  json["num_local_experts"] = config.moe.num_experts;
  json["output_router_logits"] = false;
  json["router_aux_loss_coef"] = aux_loss_coefficient(config);
}

}  // namespace

void check_hf_equivalent(const TransformerConfig& config) {
  refuse_if(!config.qk_norm, "model.qk_norm", "false", "they always normalise queries and keys");
  if (!has_sparse_layers(config)) {
    return;
  }
  const moe::MoeOptions& moe = config.moe;
  refuse_if(moe.shared_experts > 0, "moe.shared_experts", fmt::to_string(moe.shared_experts),
            "their experts are all routed");
  refuse_if(moe.score != moe::RouterScore::softmax, "moe.score", "sigmoid", "their scores are softmax");
  refuse_if(moe.group_top_k > 0 && moe.group_top_k < moe.groups, "moe.group_top_k",
            fmt::to_string(moe.group_top_k), "their tokens may choose any expert");
  refuse_if(moe.capacity_factor > 0.0, "moe.capacity_factor", fmt::to_string(moe.capacity_factor),
            "they never drop a choice");
  refuse_if(moe.force_uniform, "moe.force_uniform", "true", "their routers decide");
}

Json make_hf_config(const TransformerConfig& config, const HfConfigExtras& extras) {
  const bool sparse = has_sparse_layers(config);
  Json json = {{"architectures", {sparse ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM"}},
               {"attention_bias", false},
               {"attention_dropout", 0.0},
               {"bos_token_id", nullptr},
               {"dtype", extras.dtype},
               {"eos_token_id", nullptr},
               {"head_dim", config.resolved_head_dim()},
               {"hidden_act", "silu"},
               {"hidden_size", config.hidden},
               {"initializer_range", config.init_std},
               {"intermediate_size", config.ffn},
               {"max_position_embeddings", config.max_seq},
               {"model_type", sparse ? "qwen3_moe" : "qwen3"},
               {"num_attention_heads", config.heads},
               {"num_hidden_layers", config.layers},
               {"num_key_value_heads", config.kv_heads},
               {"pad_token_id", nullptr},
               {"rms_norm_eps", config.norm_eps},
               {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
               {"rope_theta", config.rope_theta},
               {"sliding_window", nullptr},
               {"tie_word_embeddings", config.tie_embeddings},
               {"torch_dtype", extras.dtype},
               {"use_cache", true},
               {"use_sliding_window", false},
               {"vocab_size", config.vocab_size}};
  if (extras.eos_token_id >= 0) {
    json["eos_token_id"] = extras.eos_token_id;
  }
  if (sparse) {
    add_moe_keys(config, json);
  } else {
    json["layer_types"] = std::vector<std::string>(static_cast<std::size_t>(config.layers), "full_attention");
    json["max_window_layers"] = config.layers;
  }
  return json;
}

namespace {

// Reads the keys of one config.json; null counts as absent.
class Reader {
 public:
  Reader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  const Json* find(const std::string& key) const {
    const auto found = json_.find(key);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }
  std::int64_t integer(const std::string& key, std::int64_t absent, std::int64_t max,
                       std::int64_t min = 1) const {
    const Json* value = find(key);
    if (value == nullptr) {
      return absent;
    }
    const bool fits = value->is_number_integer() && value->get<double>() >= static_cast<double>(min) &&
                      value->get<double>() <= static_cast<double>(max);
    if (!fits) {
      refuse(key, fmt::format("an integer from {} to {} is needed", min, max));
    }
    return value->get<std::int64_t>();
  }
  double positive(const std::string& key, double absent) const {
    const Json* value = find(key);
    if (value != nullptr && !(value->is_number() && value->get<double>() > 0.0)) {
      refuse(key, "a positive number is needed");
    }
    return value == nullptr ? absent : value->get<double>();
  }
  bool flag(const std::string& key, bool absent) const {
    const Json* value = find(key);
    if (value != nullptr && !value->is_boolean()) {
      refuse(key, "true or false is needed");
    }
    return value == nullptr ? absent : value->get<bool>();
  }
  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const {
    throw base::DataError(
        "{}: {}={} cannot be imported ({}) Qwen3-MoE and Qwen3 models of transformers can be", path_, key,
        json_.contains(key) ? json_[key].dump(-1, ' ', false, Json::error_handler_t::replace) : "null",
        reason);
  }

 private:
  const Json& json_;
  std::string path_;
};

// Throws unless the architecture is one of the two; gives whether it is the one with experts.
bool is_moe_architecture(const Reader& reader) {
  const Json* type = reader.find("model_type");
  const bool moe = type != nullptr && *type == "qwen3_moe";
  if (!moe && (type == nullptr || *type != "qwen3")) {
    reader.refuse("model_type", "only qwen3_moe and qwen3 have an equivalent here");
  }
  const Json* architectures = reader.find("architectures");
  const char* expected = moe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM";
  if (architectures != nullptr &&
      !(architectures->is_array() && architectures->size() == 1 && (*architectures)[0] == expected)) {
    reader.refuse("architectures", fmt::format("only {} has an equivalent here", expected));
  }
  return moe;
}

double rope_theta_of(const Reader& reader) {
  if (const Json* scaling = reader.find("rope_scaling");
      scaling != nullptr && !(scaling->is_object() && scaling->empty())) {
    reader.refuse("rope_scaling", "rotary positions are not scaled here");
  }
  const Json* parameters = reader.find("rope_parameters");
  if (parameters == nullptr) {
    return reader.positive("rope_theta", 10000.0);
  }
  double theta = reader.positive("rope_theta", 10000.0);
  for (const auto& [key, value] : parameters->items()) {
    if (parameters->is_object() && key == "rope_theta" && value.is_number() && value.get<double>() > 0.0) {
      theta = value.get<double>();
    } else if (!parameters->is_object() || key != "rope_type" || value != "default") {
      reader.refuse("rope_parameters", "only the type default and rope_theta are known here");
    }
  }
  return theta;
}

void refuse_what_is_missing_here(const Reader& reader) {
  if (const Json* act = reader.find("hidden_act"); act != nullptr && *act != "silu") {
    reader.refuse("hidden_act", "experts and feed-forward parts use silu here");
  }
  if (reader.flag("attention_bias", false)) {
    reader.refuse("attention_bias", "linear layers have no bias here");
  }
  if (reader.flag("use_sliding_window", false)) {
    reader.refuse("use_sliding_window", "attention has no window here");
  }
  if (reader.find("quantization_config") != nullptr) {
    reader.refuse("quantization_config", "quantised weights are not read; export it in bf16 or f32 first");
  }
  if (const Json* types = reader.find("layer_types"); types != nullptr) {
    for (const Json& type : *types) {
      if (type != "full_attention") {
        reader.refuse("layer_types", "attention is full in every layer here");
      }
    }
  }
}

// moe.every whose sparse layers are exactly theirs; 0 when no layer is sparse.
std::int64_t sparse_period(const Reader& reader, std::int64_t layers) {
  const std::int64_t step = reader.integer("decoder_sparse_step", 1, max_layers);
  std::vector<bool> sparse(static_cast<std::size_t>(layers));
  for (std::int64_t i = 0; i < layers; ++i) {
    sparse[static_cast<std::size_t>(i)] = (i + 1) % step == 0;
  }
  if (const Json* dense = reader.find("mlp_only_layers"); dense != nullptr) {
    for (const Json& layer : *dense) {
      if (!layer.is_number_integer()) {
        reader.refuse("mlp_only_layers", "a list of layer numbers is needed");
      }
      if (const auto i = layer.get<std::int64_t>(); i >= 0 && i < layers) {
        sparse[static_cast<std::size_t>(i)] = false;
      }
    }
  }
  const auto first = std::find(sparse.begin(), sparse.end(), true);
  if (first == sparse.end()) {
    return 0;
  }
  const std::int64_t every = first - sparse.begin() + 1;
  for (std::int64_t i = 0; i < layers; ++i) {
    if (sparse[static_cast<std::size_t>(i)] != ((i + 1) % every == 0)) {
      reader.refuse("mlp_only_layers", "sparse layers must be every n-th layer, the last of each n");
    }
  }
  return every;
}

void read_moe_keys(const Reader& reader, TransformerConfig& config) {
  moe::MoeOptions& moe = config.moe;
  moe.num_experts = reader.integer("num_experts", 128, max_experts, 0);
  moe.num_experts = reader.integer("num_local_experts", moe.num_experts, max_experts, 0);
  const std::int64_t every = sparse_period(reader, config.layers);
  if (every == 0 || moe.num_experts == 0) {
    moe = moe::MoeOptions{};
    moe.num_experts = 0;
    return;
  }
  moe.every = every;
  moe.top_k = reader.integer("num_experts_per_tok", 8, moe.num_experts);
  moe.ffn = reader.integer("moe_intermediate_size", 768, max_width);
  moe.normalize_top_k = reader.flag("norm_topk_prob", false);
}

}  // namespace

TransformerConfig read_hf_config(const Json& json, const std::string& path) {
  if (!json.is_object()) {
    throw base::DataError("{} is not a JSON object (damaged, or not the config of a model)", path);
  }
  const Reader reader(json, path);
  const bool moe = is_moe_architecture(reader);
  refuse_what_is_missing_here(reader);
  TransformerConfig config;
  config.vocab_size = reader.integer("vocab_size", 151936, max_vocabulary);
  config.layers = reader.integer("num_hidden_layers", moe ? 24 : 32, max_layers);
  config.hidden = reader.integer("hidden_size", moe ? 2048 : 4096, max_width);
  config.heads = reader.integer("num_attention_heads", 32, max_width);
  config.kv_heads = reader.integer(
      "num_key_value_heads", moe ? 4 : (json.contains("num_key_value_heads") ? config.heads : 32), max_width);
  config.head_dim = reader.integer("head_dim", moe ? config.hidden / config.heads : 128, max_width, 2);
  if (config.heads % config.kv_heads != 0) {
    reader.refuse("num_key_value_heads", fmt::format("it must divide the {} query heads", config.heads));
  }
  if (config.head_dim % 2 != 0 || config.head_dim > max_width / config.heads) {
    reader.refuse("head_dim", "rotary positions need an even width, and the heads one that fits");
  }
  config.ffn = reader.integer("intermediate_size", moe ? 6144 : 22016, max_width);
  config.max_seq = reader.integer("max_position_embeddings", 32768, max_vocabulary);
  config.norm_eps = reader.positive("rms_norm_eps", 1e-6);
  config.tie_embeddings = reader.flag("tie_word_embeddings", false);
  config.init_std = reader.positive("initializer_range", 0.02);
  config.rope_theta = rope_theta_of(reader);
  config.moe.num_experts = 0;
  if (moe) {
    read_moe_keys(reader, config);
  }
  return config;
}

bool describe_same_model(const TransformerConfig& a, const TransformerConfig& b) {
  const auto common = [](const TransformerConfig& c) {
    return std::make_tuple(c.vocab_size, c.layers, c.hidden, c.heads, c.kv_heads, c.resolved_head_dim(),
                           c.qk_norm, c.rope_theta, c.max_seq, c.tie_embeddings, c.norm_eps, c.ffn,
                           c.moe.num_experts);
  };
  const auto sparse = [](const moe::MoeOptions& m) {
    return std::make_tuple(m.top_k, m.ffn, m.shared_experts, m.groups, m.group_top_k, m.score,
                           m.normalize_top_k, m.capacity_factor, m.every);
  };
  return common(a) == common(b) && (a.moe.num_experts == 0 || sparse(a.moe) == sparse(b.moe));
}

}  // namespace athanor::model
