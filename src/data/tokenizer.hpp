// SentencePiece tokenizers: training and use.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace athanor::data {

/// A trained tokenizer. Thread-safe after construction.
class Tokenizer {
 public:
  /// Throws MissingInputError or DataError.
  explicit Tokenizer(const std::string& model_path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  std::int64_t vocab_size() const;
  std::int32_t end_of_document() const;  ///< id put after every document
  /// Any bytes can be encoded: malformed UTF-8 is read as U+FFFD. No special id is added, none is read from
  /// the text.
  std::vector<std::int32_t> encode(std::string_view text) const;
  /// Special ids give nothing; ids outside the vocabulary give U+FFFD (a model may have more rows than the
  /// tokenizer).
  std::string decode(const std::vector<std::int32_t>& ids) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::data
