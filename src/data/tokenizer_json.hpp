// A SentencePiece model in the form that Hugging Face's tokenizers library reads.
#pragma once

#include <cstdint>
#include <string>

namespace athanor::data {

/// Contents of the files that make AutoTokenizer load the tokenizer.
struct HfTokenizer {
  std::string tokenizer_json;
  std::string tokenizer_config_json;
};

/// From the SentencePiece model at `model_path` (the ids it gives to a text are those of Tokenizer: nothing
/// is added, special tokens are not read from the text; where two segmentations of a unigram model have equal
/// probabilities the choice may differ). `max_length`: the tokens that the language model takes.
/// Throws MissingInputError, IoError, DataError (no SentencePiece model), ConfigError for models of kinds
/// without an equivalent there: neither bpe nor unigram, or with spaces at the end of words.
HfTokenizer make_hf_tokenizer(const std::string& model_path, std::int64_t max_length);

}  // namespace athanor::data
