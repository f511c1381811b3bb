#include "data/tokenizer_json.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sentencepiece_trainer.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "data/tokenizer.hpp"
#include "data/tokenizer_training.hpp"
#include "data/utf8.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using nlohmann::json;
using tests::message_of;
using tests::TempFolder;
using tests::write_file;

std::vector<std::string> sample_texts() {
  const std::vector<std::string> nouns = {"furnace", "river", "teacher", "student", "expert",
                                          "signal",  "token", "harbour", "lantern", "bridge"};
  const std::vector<std::string> verbs = {"feeds", "follows", "carries", "measures", "routes", "balances"};
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < 300; ++i) {
    texts.push_back(fmt::format("The {} {} the {},\n    and {} times {{\n\treturns --{};\n    }}\n\n",
                                nouns[i % 10], verbs[i % 6], nouns[(i * 7 + 3) % 10], i,
                                std::string(i % 9, '=')));
  }
  texts.emplace_back("Grüße aus Köln");
  return texts;
}

// What the tokenizers library does with a BPE model: characters, then the pair of the lowest rank, leftmost
// first; characters without an id become bytes.
std::vector<std::int32_t> encode_by_merges(const json& model, const std::string& text) {
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (std::size_t rank = 0; rank < model["merges"].size(); ++rank) {
    ranks.emplace(model["merges"][rank].get<std::pair<std::string, std::string>>(), rank);
  }
  std::vector<std::string> symbols;
  for (std::size_t at = 0; at < text.size();) {
    std::string character = text.substr(at, utf8_character(std::string_view(text).substr(at)));
    at += character.size();
    if (character == " ") {
      character = "\xE2\x96\x81";
    }
    if (model["vocab"].contains(character)) {
      symbols.push_back(character);
      continue;
    }
    for (const char byte : character) {
      symbols.push_back(fmt::format("<0x{:02X}>", static_cast<unsigned char>(byte)));
    }
  }
  while (true) {
    std::size_t best = symbols.size();
    std::size_t best_rank = ranks.size();
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find({symbols[i], symbols[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best = i;
        best_rank = found->second;
      }
    }
    if (best == symbols.size()) {
      break;
    }
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<std::int32_t> ids;
  for (const std::string& symbol : symbols) {
    ids.push_back(model["vocab"].at(symbol).get<std::int32_t>());
  }
  return ids;
}

TEST(TokenizerJson, BpeMergesGiveTheSameIds) {
  const TempFolder folder;
  const std::string path = folder / "m.model";
  train_tokenizer(sample_texts(), {.vocab_size = 400}, path);
  const Tokenizer tokenizer(path);
  const json model = json::parse(make_hf_tokenizer(path, 128).tokenizer_json)["model"];
  EXPECT_EQ(model["type"], "BPE");
  EXPECT_EQ(static_cast<std::int64_t>(model["vocab"].size()), tokenizer.vocab_size());
  std::vector<std::string> texts = sample_texts();
  texts.resize(40);
  for (const char* text : {"", " ", "     ", "\n\n\n", "=======--=---====", "<eod> <unk> <0x41>", "東京 😀",
                           "  if (value) { x1 = 12345; }  ", "Köln ü", "a\tb"}) {
    texts.emplace_back(text);
  }
  for (const std::string& text : texts) {
    EXPECT_EQ(encode_by_merges(model, text), tokenizer.encode(text)) << text;
  }
}

TEST(TokenizerJson, SpecialTokensAreNotReadFromText) {
  const TempFolder folder;
  const std::string path = folder / "m.model";
  train_tokenizer(sample_texts(), {.vocab_size = 400}, path);
  const HfTokenizer files = make_hf_tokenizer(path, 128);
  const json tokenizer = json::parse(files.tokenizer_json);
  ASSERT_EQ(tokenizer["added_tokens"].size(), 2u);
  EXPECT_EQ(tokenizer["added_tokens"][1]["content"], "<eod>");
  EXPECT_EQ(tokenizer["added_tokens"][1]["id"], 1);
  EXPECT_EQ(tokenizer["added_tokens"][1]["special"], true);
  const json config = json::parse(files.tokenizer_config_json);
  EXPECT_EQ(config["split_special_tokens"], true);
  EXPECT_EQ(config["eos_token"], "<eod>");
  EXPECT_EQ(config["model_max_length"], 128);
}

TEST(TokenizerJson, UnigramKeepsScoresAndHidesBytePieces) {
  const TempFolder folder;
  const std::string path = folder / "m.model";
  train_tokenizer(sample_texts(), {.vocab_size = 330, .kind = TokenizerKind::unigram}, path);
  const json model = json::parse(make_hf_tokenizer(path, 128).tokenizer_json)["model"];
  EXPECT_EQ(model["type"], "Unigram");
  EXPECT_EQ(model["unk_id"], 0);
  EXPECT_EQ(model["byte_fallback"], true);
  ASSERT_EQ(model["vocab"].size(), 330u);
  for (const json& piece : model["vocab"]) {
    const auto text = piece[0].get<std::string>();
    const auto score = piece[1].get<double>();
    const bool hidden = text == "<unk>" || text == "<eod>" || text.starts_with("<0x");
    EXPECT_EQ(score < -1e5, hidden) << text;
  }
}

TEST(TokenizerJson, PrefixAndNormalisationAreSteps) {
  const TempFolder folder;
  std::string text;
  for (const std::string& sample : sample_texts()) {
    text += sample + "\n";
  }
  write_file(folder / "text.txt", text);
  const std::string command = fmt::format(
      "--input={} --model_prefix={} --vocab_size=120 --character_coverage=1 --minloglevel=2 "
      "--user_defined_symbols=<sep>",
      folder / "text.txt", folder / "m");
  ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(command).ok());
  const json tokenizer = json::parse(make_hf_tokenizer(folder / "m.model", 128).tokenizer_json);
  const json& steps = tokenizer["normalizer"]["normalizers"];
  ASSERT_EQ(steps.size(), 5u);
  EXPECT_EQ(steps[0]["type"], "Precompiled");
  EXPECT_GT(steps[0]["precompiled_charsmap"].get<std::string>().size(), 1000u);
  EXPECT_EQ(steps[3], json({{"type", "Prepend"}, {"prepend", "\xE2\x96\x81"}}));
  EXPECT_EQ(tokenizer["decoder"]["decoders"].back()["type"], "Strip");
  EXPECT_EQ(tokenizer["added_tokens"].back()["content"], "<sep>");
  EXPECT_EQ(tokenizer["added_tokens"].back()["special"], false);
}

TEST(TokenizerJson, RefusesWhatItCannotExport) {
  const TempFolder folder;
  EXPECT_THROW(make_hf_tokenizer(folder / "absent", 1), base::MissingInputError);
  write_file(folder / "damaged", "\x0a\xff\xff\xff\x7f....");
  EXPECT_THROW(make_hf_tokenizer(folder / "damaged", 1), base::DataError);
  write_file(folder / "text.txt", "aa bb cc dd aa bb cc dd\naa cc\n");
  const std::string command =
      fmt::format("--input={} --model_prefix={} --model_type=word --vocab_size=7 --minloglevel=2 ",
                  folder / "text.txt", folder / "word");
  ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(command).ok());
  EXPECT_NE(message_of<base::ConfigError>([&] {
              make_hf_tokenizer(folder / "word.model", 1);
            }).find("neither a bpe nor a unigram model"),
            std::string::npos);
}

}  // namespace
}  // namespace athanor::data
