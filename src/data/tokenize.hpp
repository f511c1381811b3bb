// `athanor tokenize`: text to a tokenizer and token files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/text_reader.hpp"

namespace athanor::data {

struct TokenizeOptions {
  std::vector<std::string> inputs;  ///< files or folders, see TextOptions
  std::string
      output;  ///< prefix of the token files; empty: only train the tokenizer, which then needs a path
  std::string tokenizer;  ///< model file: used when it exists, otherwise trained there; empty: trained at
                          ///< OUTPUT.model
  std::int64_t vocab_size = 8192;                        ///< of a tokenizer that is trained
  std::int64_t training_bytes = std::int64_t{10} << 20;  ///< about how much text the tokenizer is trained on
  double held_out =
      0.0;  ///< share of documents kept for evaluation: OUTPUT-train and OUTPUT-valid are written
  std::uint64_t seed = 0;  ///< chooses the tokenizer's sample and the held-out documents
  DocumentSplit split = DocumentSplit::blank_lines;
  std::string json_field = "text";
  int threads = 0;  ///< encoding; 0: one per core. The output does not depend on it
};

/// One token file that was written.
struct TokenizeOutput {
  std::string prefix;
  std::int64_t documents = 0;
  std::int64_t tokens = 0;  ///< ends of documents included
};

struct TokenizeResult {
  std::string tokenizer;  ///< path of the model
  bool trained = false;   ///< made by this call
  std::int64_t vocab_size = 0;
  std::int32_t end_of_document = 0;
  TextCounts text;
  std::int64_t tokens = 0;  ///< of all outputs
  double seconds = 0.0;
  std::vector<TokenizeOutput> outputs;
};

/// Reads the inputs once for the tokenizer (if it is to be trained) and once for the token files. Documents
/// go to the held-out part by a hash of their text, so equal documents are never on both sides, and the
/// tokenizer never sees held-out text. Everything depends only on inputs and options, not on threads. Files
/// appear when they are whole; existing ones are replaced. Throws the errors of TextReader, train_tokenizer
/// and TokenFileWriter; ConfigError for options out of range; DataError for an empty corpus or an empty part.
TokenizeResult run_tokenize(const TokenizeOptions& options);

}  // namespace athanor::data
