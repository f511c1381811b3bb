#include "data/tokenizer.hpp"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/error.hpp"
#include "data/detail/word_cache.hpp"
#include "data/utf8.hpp"

namespace athanor::data {

namespace {

// Longer texts are encoded in parts: SentencePiece needs a hundred bytes of memory and more per byte of text.
constexpr std::size_t max_part_bytes = 8 << 10;
constexpr std::size_t max_cached_word_bytes = 64;
constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581, which stands for a space in pieces

std::string read_model(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    throw base::MissingInputError(
        "the tokenizer {} does not exist (it is needed to read and write text) check the "
        "path, or make one with `athanor tokenize`",
        path);
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || file.bad()) {
    throw base::IoError("the tokenizer {} cannot be read ({}) check its permissions", path,
                        std::strerror(errno));
  }
  return bytes;
}

// Bytes of the next part: all of a short text, otherwise up to the last space that ends a word or, without
// one, a character boundary.
std::size_t part_length(std::string_view text) {
  if (text.size() <= max_part_bytes) {
    return text.size();
  }
  for (std::size_t at = max_part_bytes; at > max_part_bytes / 2; --at) {
    if (text[at] == ' ' && text[at - 1] != ' ') {
      return at;
    }
  }
  return utf8_cut(text, max_part_bytes);
}

// Bytes of the next word: its leading spaces, and what follows up to the next space.
std::size_t word_length(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(' ');
  return begin == std::string_view::npos ? text.size() : std::min(text.find(' ', begin), text.size());
}

// Whether `piece` has a space after something else than a space.
bool crosses_words(std::string_view piece) {
  while (piece.starts_with(space_mark)) {
    piece.remove_prefix(space_mark.size());
  }
  return piece.find(space_mark) != std::string_view::npos;
}

}  // namespace

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::int32_t end_of_document = -1;
  bool adds_prefix = false;  // the model puts a space before every text it encodes
  bool has_words = false;    // no id spans the start of a word, so words can be encoded one by one
  mutable detail::WordCache words;

  bool keeps_words_apart() const;
  void encode_part(std::string_view part, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
};

bool Tokenizer::State::keeps_words_apart() const {
  const std::string spaced = "  a  b  ";
  std::vector<int> ids;
  std::string decoded;
  if (adds_prefix || !processor.Encode(spaced, &ids).ok() || !processor.Decode(ids, &decoded).ok() ||
      decoded != spaced) {
    return false;
  }
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    if (crosses_words(processor.IdToPiece(id))) {
      return false;
    }
  }
  return true;
}

void Tokenizer::State::encode_part(std::string_view part, std::vector<std::int32_t>& ids) const {
  std::vector<int> part_ids;
  const auto status = processor.Encode(part, &part_ids);
  ATHANOR_CHECK(status.ok(), "SentencePiece cannot encode: {}", status.ToString());
  ids.insert(ids.end(), part_ids.begin(), part_ids.end());
}

void Tokenizer::State::encode_word(std::string_view word, std::vector<std::int32_t>& ids) const {
  if (words.append(word, ids)) {
    return;
  }
  std::vector<std::int32_t> word_ids;
  encode_part(word, word_ids);
  words.insert(word, word_ids);
  ids.insert(ids.end(), word_ids.begin(), word_ids.end());
}

Tokenizer::Tokenizer(const std::string& model_path) : state_(std::make_unique<State>()) {
  const std::string model = read_model(model_path);
  const auto status = state_->processor.LoadFromSerializedProto(model);
  if (model.empty() || !status.ok()) {
    throw base::DataError(
        "{} is not a SentencePiece model ({}) give a .model file, or make one with "
        "`athanor tokenize`",
        model_path, model.empty() ? "it is empty" : status.ToString());
  }
  const int eos = state_->processor.eos_id();
  state_->end_of_document = eos >= 0 ? eos : state_->processor.bos_id();
  if (state_->end_of_document < 0) {
    throw base::DataError(
        "the tokenizer {} has no end-of-document id (neither eos nor bos is defined) train one "
        "with eos_id set",
        model_path);
  }
  std::vector<std::string> pieces;
  state_->adds_prefix = state_->processor.Encode("a", &pieces).ok() && !pieces.empty() &&
                        pieces.front().starts_with(space_mark);
  state_->has_words = state_->keeps_words_apart();
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::int64_t Tokenizer::vocab_size() const {
  return state_->processor.GetPieceSize();
}
std::int32_t Tokenizer::end_of_document() const {
  return state_->end_of_document;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  for (bool first = true; !text.empty(); first = false) {
    if (const std::size_t length = word_length(text); state_->has_words && length <= max_cached_word_bytes) {
      state_->encode_word(text.substr(0, length), ids);
      text.remove_prefix(length);
      continue;
    }
    // With words, a part ends with the long one.
    std::string_view part =
        text.substr(0, part_length(state_->has_words ? text.substr(0, word_length(text)) : text));
    text.remove_prefix(part.size());
    // The space at the cut is the one that the model adds by itself.
    if (!first && state_->adds_prefix && part.front() == ' ') {
      part.remove_prefix(1);
    }
    state_->encode_part(part, ids);
  }
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  const auto known = [&](std::int32_t id) { return id >= 0 && id < vocab_size(); };
  std::string text;
  for (auto at = ids.begin(); at != ids.end();) {
    const auto end = std::find_if_not(at, ids.end(), known);
    std::string part;
    const auto status = state_->processor.Decode(std::vector<int>(at, end), &part);
    ATHANOR_CHECK(status.ok(), "SentencePiece cannot decode: {}", status.ToString());
    text += part;
    at = end;
    if (at != ids.end()) {
      text += utf8_replacement;
      ++at;
    }
  }
  return text;
}

}  // namespace athanor::data
