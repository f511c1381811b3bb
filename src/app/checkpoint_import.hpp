// From a Hugging Face folder to a checkpoint of weights.
#pragma once

#include <cstdint>
#include <string>

#include "model/transformer_config.hpp"

namespace athanor::app {

struct ImportOptions {
  std::string from;              ///< folder with config.json and safetensors
  std::string to;                ///< the run folder to make: absent, or empty
  std::string role = "teacher";  ///< the role that gets the weights
  /// Payload of one file of the checkpoint; a larger tensor gets a file of its own. Bounds the memory needed.
  std::int64_t max_file_bytes = std::int64_t{4} << 30;
};

struct ImportResult {
  std::string checkpoint;  ///< <to>/checkpoints/step-00000000
  model::TransformerConfig model;
  std::int64_t parameters = 0;
  bool has_sentencepiece = false;  ///< whether text commands work with it
};

/// Makes a checkpoint at step 0 with the f32 parameters of a Qwen3-MoE or Qwen3 model and the keys of its
/// configuration that describe the model; a SentencePiece tokenizer.model becomes the run's tokenizer, other
/// tokenizer files are kept for an export. The folder appears when it is complete. Throws MissingInputError,
/// DataError (another architecture; tensors that are missing, unexpected, of wrong shape or dtype, not
/// finite; damaged files), CannotCreateError (`to` is not empty), IoError.
ImportResult import_from_hugging_face(const ImportOptions& options);

}  // namespace athanor::app
