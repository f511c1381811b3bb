// Training SentencePiece tokenizers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace athanor::data {

enum class TokenizerKind { bpe, unigram };

struct TokenizerTrainingOptions {
  std::int64_t vocab_size = 8192;  ///< special ids (unknown 0, end of document 1) and the 256 bytes included
  TokenizerKind kind = TokenizerKind::bpe;
  double character_coverage =
      0.9995;  ///< share of the text's characters with ids of their own; others become bytes
};

/// Trains on `texts` (well-formed UTF-8) and writes the model to `model_path`. Every text can be encoded
/// (unknown characters fall back to bytes) and decodes to itself: no normalisation, spaces and line ends
/// kept. The same texts in the same order give the same model. Throws ConfigError when the vocabulary does
/// not suit the text, CannotCreateError, IoError.
void train_tokenizer(const std::vector<std::string>& texts, const TokenizerTrainingOptions& options,
                     const std::string& model_path);

}  // namespace athanor::data
