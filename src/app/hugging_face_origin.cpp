#include "app/hugging_face_origin.hpp"

#include "base/error.hpp"

namespace athanor::app {

using checkpoint::ElementType;

namespace {

constexpr const char* manifest_key = "hugging_face";
constexpr const char* fused_word = "fused";
constexpr const char* per_expert_word = "per_expert";

}  // namespace

ElementType HuggingFaceOrigin::dtype_of(const std::string& tensor) const {
  const auto found = exceptions.find(tensor);
  return found == exceptions.end() ? dtype : found->second;
}

nlohmann::json to_json(const HuggingFaceOrigin& origin) {
  nlohmann::json exceptions = nlohmann::json::object();
  for (const auto& [tensor, type] : origin.exceptions) {
    exceptions[tensor] = element_type_name(type);
  }
  return {{manifest_key,
           {{"config", nlohmann::json::parse(origin.config)},
            {"dtype", element_type_name(origin.dtype)},
            {"exceptions", exceptions},
            {"experts", origin.experts == model::HfExpertNames::fused ? fused_word : per_expert_word}}}};
}

std::optional<HuggingFaceOrigin> find_origin(const checkpoint::Manifest& manifest) {
  if (!manifest.data.is_object() || !manifest.data.contains(manifest_key)) {
    return std::nullopt;
  }
  const nlohmann::json& json = manifest.data[manifest_key];
  try {
    HuggingFaceOrigin origin;
    origin.config = json.at("config").dump();
    origin.dtype = checkpoint::element_type_from_name(json.at("dtype").get<std::string>());
    for (const auto& [tensor, type] : json.at("exceptions").items()) {
      origin.exceptions[tensor] = checkpoint::element_type_from_name(type.get<std::string>());
    }
    origin.experts =
        json.at("experts") == fused_word ? model::HfExpertNames::fused : model::HfExpertNames::per_expert;
    return origin;
  } catch (const nlohmann::json::exception& error) {
    throw base::CheckpointError(
        "the manifest's data.hugging_face cannot be read ({}) it is damaged or of another program",
        error.what());
  }
}

const std::vector<std::string>& kept_files() {
  static const std::vector<std::string> names = {"tokenizer.json",
                                                 "tokenizer_config.json",
                                                 "special_tokens_map.json",
                                                 "added_tokens.json",
                                                 "vocab.json",
                                                 "merges.txt",
                                                 "chat_template.json",
                                                 "chat_template.jinja",
                                                 "generation_config.json"};
  return names;
}

std::string safetensors_dtype(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return "F32";
    case ElementType::bf16:
      return "BF16";
    case ElementType::f16:
      return "F16";
    default:
      throw base::InternalError("models are not exchanged in {}", element_type_name(type));
  }
}

std::string torch_dtype(ElementType type) {
  switch (type) {
    case ElementType::f32:
      return "float32";
    case ElementType::bf16:
      return "bfloat16";
    case ElementType::f16:
      return "float16";
    default:
      throw base::InternalError("models are not exchanged in {}", element_type_name(type));
  }
}

std::optional<ElementType> element_type_of(const std::string& safetensors_dtype) {
  if (safetensors_dtype == "F32") {
    return ElementType::f32;
  }
  if (safetensors_dtype == "BF16") {
    return ElementType::bf16;
  }
  if (safetensors_dtype == "F16") {
    return ElementType::f16;
  }
  return std::nullopt;
}

}  // namespace athanor::app
