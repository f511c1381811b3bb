// What an imported checkpoint remembers of the Hugging Face folder it came from, so that an export gives the
// same files back. Kept in the manifest's `data` under "hugging_face".
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/manifest.hpp"
#include "model/hf_names.hpp"

namespace athanor::app {

struct HuggingFaceOrigin {
  std::string config;                                            ///< config.json as it was, as JSON text
  checkpoint::ElementType dtype = checkpoint::ElementType::f32;  ///< of most tensors
  std::map<std::string, checkpoint::ElementType> exceptions;     ///< tensors of another dtype
  model::HfExpertNames experts = model::HfExpertNames::per_expert;

  checkpoint::ElementType dtype_of(const std::string& tensor) const;
};

nlohmann::json to_json(const HuggingFaceOrigin& origin);
/// Nothing when the checkpoint was not imported. Throws CheckpointError when it says so and is malformed.
std::optional<HuggingFaceOrigin> find_origin(const checkpoint::Manifest& manifest);

/// Files of a Hugging Face folder, besides config and weights, that an import keeps in the checkpoint, under
/// kept_prefix, and an export gives back unchanged.
inline constexpr const char* kept_prefix = "hf-";
const std::vector<std::string>& kept_files();

/// The name of a dtype in safetensors ("F32") and in config.json ("float32"), and back from the first. The
/// latter gives nothing for what models are not stored in.
std::string safetensors_dtype(checkpoint::ElementType type);
std::string torch_dtype(checkpoint::ElementType type);
std::optional<checkpoint::ElementType> element_type_of(const std::string& safetensors_dtype);

}  // namespace athanor::app
