#include "data/tokenizer.hpp"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/error.hpp"
#include "data/utf8.hpp"

namespace athanor::data {

namespace {

// Longer texts are encoded in parts, because SentencePiece needs about a hundred bytes of memory per byte of
// text.
constexpr std::size_t max_part_bytes = 64 << 10;

std::string read_model(const std::string& path) {
  if (!std::filesystem::exists(path)) {
    throw base::MissingInputError(
        "the tokenizer {} does not exist (it is needed to read and write text) check the "
        "path, or make one with `athanor tokenize`",
        path);
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!file || !bytes) {
    throw base::IoError("the tokenizer {} cannot be read (the read failed) check its permissions", path);
  }
  return std::move(bytes).str();
}

// Bytes of the next part: all of a short text, otherwise up to a space or, without one, a character boundary.
std::size_t part_length(std::string_view text) {
  if (text.size() <= max_part_bytes) {
    return text.size();
  }
  const std::size_t space = text.rfind(' ', max_part_bytes);
  return space != std::string_view::npos && space > max_part_bytes / 2 ? space
                                                                       : utf8_cut(text, max_part_bytes);
}

}  // namespace

struct Tokenizer::State {
  sentencepiece::SentencePieceProcessor processor;
  std::int32_t end_of_document = -1;
  bool adds_prefix = false;  // the model puts a space before every text it encodes
};

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
                        pieces.front().starts_with("\xE2\x96\x81");
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
  std::vector<int> part_ids;
  for (bool first = true; !text.empty(); first = false) {
    const std::size_t length = part_length(text);
    std::string_view part = text.substr(0, length);
    // The space at the cut is the one that the model adds by itself.
    if (!first && state_->adds_prefix && part.front() == ' ') {
      part.remove_prefix(1);
    }
    const auto status = state_->processor.Encode(part, &part_ids);
    ATHANOR_CHECK(status.ok(), "SentencePiece cannot encode: {}", status.ToString());
    ids.insert(ids.end(), part_ids.begin(), part_ids.end());
    text.remove_prefix(length);
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
