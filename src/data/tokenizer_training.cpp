#include "data/tokenizer_training.hpp"

#include <sentencepiece_trainer.h>

#include <string_view>
#include <unordered_map>

#include "base/error.hpp"
#include "data/detail/line_reader.hpp"
#include "data/detail/output_file.hpp"

namespace athanor::data {

namespace {

// SentencePiece leaves out sentences beyond its limit, so texts go in as parts of at most this size.
constexpr std::size_t max_sentence_bytes = 4096;
// 256 bytes, two special ids, and room for the characters.
constexpr std::int64_t min_vocab_size = 300;

// Hands the texts to SentencePiece part by part, without a copy of them all.
class TextParts : public sentencepiece::SentenceIterator {
 public:
  explicit TextParts(const std::vector<std::string>& texts) : texts_(texts) { Next(); }

  bool done() const override { return done_; }
  const std::string& value() const override { return part_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    while (rest_.empty()) {
      if (next_text_ == texts_.size()) {
        done_ = true;
        return;
      }
      rest_ = texts_[next_text_++];
    }
    const std::size_t length =
        rest_.size() <= max_sentence_bytes ? rest_.size() : detail::part_end(rest_, max_sentence_bytes);
    part_ = rest_.substr(0, length);
    rest_.remove_prefix(length);
  }

 private:
  const std::vector<std::string>& texts_;
  std::size_t next_text_ = 0;
  std::string_view rest_;
  std::string part_;
  bool done_ = false;
};

std::unordered_map<std::string, std::string> trainer_arguments(const TokenizerTrainingOptions& options) {
  return {
      {"model_type", options.kind == TokenizerKind::bpe ? "bpe" : "unigram"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"character_coverage", std::to_string(options.character_coverage)},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      // What goes in comes out: no normalisation, no space added or removed; runs of spaces (code) are
      // pieces.
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"unk_id", "0"},
      {"eos_id", "1"},
      {"eos_piece", "<eod>"},
      {"bos_id", "-1"},
      {"pad_id", "-1"},
      // The sample is chosen by the caller, so that it does not depend on SentencePiece's random numbers.
      {"input_sentence_size", "0"},
      {"shuffle_input_sentence", "false"},
      {"max_sentence_length", std::to_string(4 * max_sentence_bytes)},
      // The number is part of the model file: fixed, so that the file does not depend on the machine.
      {"num_threads", "2"},
      {"minloglevel", "2"},
  };
}

}  // namespace

void train_tokenizer(const std::vector<std::string>& texts, const TokenizerTrainingOptions& options,
                     const std::string& model_path) {
  if (options.vocab_size < min_vocab_size) {
    throw base::ConfigError(
        "tokenize.vocab_size={} is too small for a tokenizer (256 bytes, special ids and some characters "
        "are always in it) use {} or more",
        options.vocab_size, min_vocab_size);
  }
  detail::OutputFile file(model_path);
  TextParts parts(texts);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(trainer_arguments(options), &parts, &model);
  if (!status.ok()) {
    throw base::ConfigError(
        "no tokenizer with tokenize.vocab_size={} can be trained on this text (SentencePiece: {}) give more "
        "text, or another vocabulary size",
        options.vocab_size, status.ToString());
  }
  file.write(model.data(), model.size());
  file.finish();
}

}  // namespace athanor::data
