// From a checkpoint to a Hugging Face folder.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/tensor_slice.hpp"
#include "model/transformer_config.hpp"

namespace athanor::app {

struct ExportOptions {
  std::string from;                ///< folder of a whole checkpoint
  std::string to;                  ///< absent, or an empty folder
  std::string role = "teacher";    ///< whose weights
  model::TransformerConfig model;  ///< of that role, by the checkpoint's configuration
  /// f32, bf16 or f16, rounded to nearest even; nothing: as the folder it was imported from, otherwise f32.
  std::optional<checkpoint::ElementType> dtype;
  std::int64_t max_file_bytes = 5'000'000'000;  ///< tensors in one safetensors file
};

struct ExportResult {
  std::string folder;
  std::string dtype;  ///< "float32", "bfloat16", "float16"
  std::int64_t tensors = 0;
  std::int64_t files = 0;  ///< safetensors files
  std::int64_t bytes = 0;  ///< of tensors
  bool has_tokenizer = false;
};

/// Writes config.json, the weights as safetensors, tokenizer files and generation_config.json for Qwen3-MoE
/// or Qwen3; the folder appears when it is complete. One parameter at a time in memory. Throws ConfigError
/// (no equivalent there, naming the key), CheckpointError (no such role, other tensors than the model's,
/// damaged), DataError (a number that the dtype cannot hold), CannotCreateError (`to` is not empty), IoError.
ExportResult export_to_hugging_face(const ExportOptions& options);

}  // namespace athanor::app
