// Models that Hugging Face's transformers knows too: Qwen3-MoE (with experts) and Qwen3 (dense). How their
// tensors and their config.json correspond to ours. No LibTorch here: names, shapes and numbers only.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "model/transformer_config.hpp"

namespace athanor::model {

/// A parameter of a Transformer of this config: its name and the shape of the whole tensor.
struct ParameterShape {
  std::string name;
  std::vector<std::int64_t> shape;

  std::int64_t numel() const;
};

/// All parameters, in the order of the layers; tied ones once.
std::vector<ParameterShape> parameter_shapes(const TransformerConfig& config);

/// How the routed experts of a layer are named there: one tensor for each expert and matrix, as files have
/// them, or one tensor for all experts, as transformers 5 has them in memory.
enum class HfExpertNames { per_expert, fused };

/// A tensor of theirs, which is a contiguous part of a parameter of ours.
struct HfTensor {
  std::string name;
  std::vector<std::int64_t> shape;
  std::string parameter;   ///< our name
  std::int64_t first = 0;  ///< its first element in our flattened tensor

  std::int64_t numel() const;
};

/// Their tensors; together they hold every element of parameter_shapes() once.
std::vector<HfTensor> hf_tensors(const TransformerConfig& config, HfExpertNames experts);
/// The number of them, by arithmetic.
std::int64_t count_hf_tensors(const TransformerConfig& config, HfExpertNames experts);

/// Throws ConfigError naming the first key whose value no architecture there has.
void check_hf_equivalent(const TransformerConfig& config);

/// What config.json says besides the model's shape.
struct HfConfigExtras {
  std::string dtype = "float32";   ///< of the tensors: "float32", "bfloat16", "float16"
  std::int64_t eos_token_id = -1;  ///< -1: none
};

/// The config.json of a model that check_hf_equivalent() accepts.
nlohmann::json make_hf_config(const TransformerConfig& config, const HfConfigExtras& extras);

/// The model that a config.json describes (`path` is for messages); keys that do not describe it are not
/// looked at, absent ones have transformers' defaults. Throws DataError naming the key, its value and why for
/// other architectures and for what ours cannot do.
TransformerConfig read_hf_config(const nlohmann::json& json, const std::string& path);

/// Whether two configs are of one function with the same parameters (training options may differ).
bool describe_same_model(const TransformerConfig& a, const TransformerConfig& b);

}  // namespace athanor::model
