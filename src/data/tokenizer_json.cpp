#include "data/tokenizer_json.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/error.hpp"
#include "data/detail/sentencepiece_model.hpp"
#include "data/tokenizer.hpp"
#include "data/utf8.hpp"

namespace athanor::data {
namespace {

using detail::Piece;
using detail::PieceKind;
using detail::SentencePieceModel;
using Json = nlohmann::json;

constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581, which stands for a space in pieces
// Far below any sum of pieces: text that spells the name of a piece that no text gives ("<eod>", "<0x41>")
// does not become that piece.
constexpr double unreachable_score = -1e6;

std::string read_bytes(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw base::MissingInputError("the tokenizer {} does not exist (or is no file) check the path", path);
  }
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) {
    throw base::IoError("the tokenizer {} cannot be read ({}) check its permissions", path,
                        std::strerror(errno));
  }
  return bytes;
}

void check_equivalent(const SentencePieceModel& model, const std::string& path) {
  const auto refuse_if = [&](bool refused, const char* what) {
    if (refused) {
      throw base::ConfigError(
          "the tokenizer {} has no equivalent in Hugging Face's tokenizers (it {}) only bpe and unigram "
          "models "
          "with spaces at the start of words can be exported",
          path, what);
    }
  };
  refuse_if(model.model_type != 1 && model.model_type != 2, "is neither a bpe nor a unigram model");
  refuse_if(model.treat_whitespace_as_suffix, "puts spaces at the end of words");
  refuse_if(!model.escape_whitespaces, "does not mark spaces");
  refuse_if(std::any_of(model.pieces.begin(), model.pieces.end(),
                        [](const Piece& piece) { return piece.kind == PieceKind::unused; }),
            "has unused pieces");
}

std::string base64(const std::string& bytes) {
  static constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = i; j < i + 3; ++j) {
      group = group << 8 | (j < bytes.size() ? static_cast<unsigned char>(bytes[j]) : 0U);
    }
    for (std::size_t j = 0; j < 4; ++j) {
      text += i + j > bytes.size() ? '=' : digits[group >> (18 - 6 * j) & 63U];
    }
  }
  return text;
}

Json replace(Json pattern, std::string_view content) {
  return {{"type", "Replace"}, {"pattern", std::move(pattern)}, {"content", content}};
}

// What SentencePiece does to a text before it looks for pieces, in its order.
Json make_normalizer(const SentencePieceModel& model) {
  Json steps = Json::array();
  if (!model.character_map.empty()) {
    steps.push_back({{"type", "Precompiled"}, {"precompiled_charsmap", base64(model.character_map)}});
  }
  if (model.remove_extra_whitespaces) {
    steps.push_back(replace({{"Regex", "\\A +| +\\z"}}, ""));
    steps.push_back(replace({{"Regex", " {2,}"}}, " "));
  }
  if (model.add_dummy_prefix) {
    steps.push_back({{"type", "Prepend"}, {"prepend", space_mark}});
  }
  steps.push_back(replace({{"String", " "}}, space_mark));
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

Json make_decoder(const SentencePieceModel& model) {
  Json steps = {replace({{"String", space_mark}}, " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (model.add_dummy_prefix) {
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  return {{"type", "Sequence"}, {"decoders", steps}};
}

/// A pair of pieces that becomes a third one.
struct Merge {
  std::string_view left;
  std::string_view right;
  float score = 0.0F;        // of the piece they become; SentencePiece joins the best first
  std::int64_t left_id = 0;  // breaks ties
  std::int64_t right_id = 0;
};

std::vector<Merge> find_merges(const SentencePieceModel& model) {
  std::unordered_map<std::string_view, std::int64_t> ids;
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    if (model.pieces[id].kind == PieceKind::normal) {
      ids.emplace(model.pieces[id].text, static_cast<std::int64_t>(id));
    }
  }
  std::vector<Merge> merges;
  for (const Piece& piece : model.pieces) {
    if (piece.kind != PieceKind::normal) {
      continue;
    }
    const std::string_view text = piece.text;
    for (std::size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut));  // parts that end inside a character are no pieces
      const auto right = ids.find(text.substr(cut));
      if (left != ids.end() && right != ids.end()) {
        merges.push_back({left->first, right->first, piece.score, left->second, right->second});
      }
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return std::make_tuple(-a.score, a.left_id, a.right_id) <
           std::make_tuple(-b.score, b.left_id, b.right_id);
  });
  return merges;
}

Json make_bpe(const SentencePieceModel& model, const std::string& unknown) {
  Json vocabulary = Json::object();
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    vocabulary[model.pieces[id].text] = id;
  }
  Json merges = Json::array();
  for (const Merge& merge : find_merges(model)) {
    merges.push_back({merge.left, merge.right});
  }
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", unknown},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", true},
          {"byte_fallback", model.byte_fallback},
          {"ignore_merges", false},
          {"vocab", vocabulary},
          {"merges", merges}};
}

Json make_unigram(const SentencePieceModel& model, std::size_t unknown_id) {
  Json vocabulary = Json::array();
  for (const Piece& piece : model.pieces) {
    const bool is_text = piece.kind == PieceKind::normal || piece.kind == PieceKind::user_defined;
    vocabulary.push_back({piece.text, is_text ? static_cast<double>(piece.score) : unreachable_score});
  }
  return {{"type", "Unigram"},
          {"unk_id", unknown_id},
          {"vocab", vocabulary},
          {"byte_fallback", model.byte_fallback}};
}

Json make_added_tokens(const SentencePieceModel& model) {
  Json tokens = Json::array();
  for (std::size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    const bool special = piece.kind == PieceKind::control || piece.kind == PieceKind::unknown;
    if (special || piece.kind == PieceKind::user_defined) {
      tokens.push_back({{"id", id},
                        {"content", piece.text},
                        {"single_word", false},
                        {"lstrip", false},
                        {"rstrip", false},
                        {"normalized", false},
                        {"special", special}});
    }
  }
  return tokens;
}

Json make_tokenizer_config(const SentencePieceModel& model, const std::string& unknown,
                           std::int32_t end_of_document, std::int64_t max_length) {
  Json decoder = Json::object();
  for (const Json& token : make_added_tokens(model)) {
    Json entry = token;
    entry.erase("id");
    decoder[token["id"].dump()] = entry;
  }
  return {{"added_tokens_decoder", decoder},
          {"clean_up_tokenization_spaces", false},
          {"eos_token", model.pieces[static_cast<std::size_t>(end_of_document)].text},
          {"model_max_length", max_length},
          // Text is text: "<eod>" in it is not the end of a document.
          {"split_special_tokens", true},
          {"tokenizer_class", "PreTrainedTokenizerFast"},
          {"unk_token", unknown}};
}

}  // namespace

HfTokenizer make_hf_tokenizer(const std::string& model_path, std::int64_t max_length) {
  const std::int32_t end_of_document = Tokenizer(model_path).end_of_document();
  const SentencePieceModel model = detail::parse_sentencepiece_model(read_bytes(model_path), model_path);
  check_equivalent(model, model_path);
  const auto unknown = std::find_if(model.pieces.begin(), model.pieces.end(),
                                    [](const Piece& piece) { return piece.kind == PieceKind::unknown; });
  if (unknown == model.pieces.end()) {
    throw base::DataError("{} is not a SentencePiece model (it has no unknown piece) give another",
                          model_path);
  }
  const auto unknown_id = static_cast<std::size_t>(unknown - model.pieces.begin());
  const Json json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", make_added_tokens(model)},
      {"normalizer", make_normalizer(model)},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder", make_decoder(model)},
      {"model", model.model_type == 2 ? make_bpe(model, unknown->text) : make_unigram(model, unknown_id)}};
  try {
    return {json.dump(1) + "\n",
            make_tokenizer_config(model, unknown->text, end_of_document, max_length).dump(2) + "\n"};
  } catch (const Json::exception& error) {  // a piece that is not UTF-8
    throw base::DataError("the tokenizer {} cannot be exported ({}) give another", model_path, error.what());
  }
}

}  // namespace athanor::data
