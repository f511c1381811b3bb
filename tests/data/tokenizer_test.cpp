#include "data/tokenizer.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "data/tokenizer_training.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::message_of;
using tests::read_file;
using tests::TempFolder;
using tests::write_file;
using namespace std::string_literals;

// Some hundred sentences with enough different words for a small vocabulary.
std::vector<std::string> sample_texts() {
  const std::vector<std::string> nouns = {"furnace", "river", "teacher", "student", "expert",
                                          "signal",  "token", "harbour", "lantern", "bridge"};
  const std::vector<std::string> verbs = {"feeds", "follows", "carries", "measures", "routes", "balances"};
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < 300; ++i) {
    texts.push_back("The " + nouns[i % 10] + " " + verbs[i % 6] + " the " + nouns[(i * 7 + 3) % 10] +
                    ",\n    and " + std::to_string(i) + " times it {\n        returns;\n    }\n");
  }
  return texts;
}

class TokenizerTest : public ::testing::Test {
 protected:
  // Training takes a moment: one model for all tests.
  static void SetUpTestSuite() {
    folder_ = new TempFolder;
    train_tokenizer(sample_texts(), {.vocab_size = 400}, *folder_ / "m.model");
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  static TempFolder* folder_;
  const Tokenizer tokenizer_{*folder_ / "m.model"};
};
TempFolder* TokenizerTest::folder_ = nullptr;

TEST_F(TokenizerTest, HasTheVocabularyThatWasAskedFor) {
  EXPECT_EQ(tokenizer_.vocab_size(), 400);
  EXPECT_EQ(tokenizer_.end_of_document(), 1);
}

TEST_F(TokenizerTest, DecodesToTheSameText) {
  for (const std::string& text :
       {""s, " "s, "a"s, "The furnace feeds the river"s, "  two  spaces   and three "s,
        "\n\n\tx = y;\r\n    z\n"s, "unseen \u00e9\u4e2d\U0001F600 characters"s, "</s><eod><unk><0x41>"s,
        sample_texts()[17]}) {
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
  }
  EXPECT_LT(tokenizer_.encode("The furnace feeds the river").size(), 10u);
}

TEST_F(TokenizerTest, TextGivesNoSpecialIds) {
  for (const std::int32_t id : tokenizer_.encode("</s> <eod> <unk> \u4e2d\xff plain")) {
    EXPECT_GT(id, 1);
    EXPECT_LT(id, 400);
  }
}

TEST_F(TokenizerTest, TakesMalformedTextAndUnknownIds) {
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode("a\xff"
                                                "b\xe2\x82")),
            "a\xEF\xBF\xBD"
            "b\xEF\xBF\xBD\xEF\xBF\xBD");
  const std::vector<std::int32_t> a = tokenizer_.encode("a");
  EXPECT_EQ(tokenizer_.decode({a[0], 1, 100000, -5, a[0]}),
            "a\xEF\xBF\xBD\xEF\xBF\xBD"
            "a");
}

TEST_F(TokenizerTest, LongTextsAreEncodedInPartsThatFitTogether) {
  std::string words;
  while (words.size() < 300000) {
    words += sample_texts()[words.size() % 300];
  }
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(words)), words);
  const std::string one_word(200000, 'x');
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(one_word)), one_word);
  std::string no_spaces;
  for (int i = 0; i < 60000; ++i) {
    no_spaces += "\u20ac";
  }
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(no_spaces)), no_spaces);
}

// Words are encoded one by one and remembered: the ids must be those of SentencePiece on the whole text.
TEST_F(TokenizerTest, EncodesLikeSentencePieceOnTheWholeText) {
  sentencepiece::SentencePieceProcessor whole;
  ASSERT_TRUE(whole.Load(*folder_ / "m.model").ok());
  const base::PhiloxStream random(1, base::RandomPurpose::test, "text");
  const std::vector<std::string> parts = {" ",    "  ",      "     ", "\n", "\n    ", "the",
                                          " The", "furnace", "s",     "{",  "}",      " returns",
                                          ";",    "\u4e2d",  "\t",    "12", ", ",     "a"};
  for (std::uint64_t trial = 0; trial < 200; ++trial) {
    std::string text;
    for (std::uint64_t i = 0; i < 60; ++i) {
      text += parts[random.bits(trial, i) % parts.size()];
    }
    std::vector<int> expected;
    ASSERT_TRUE(whole.Encode(text, &expected).ok());
    ASSERT_EQ(tokenizer_.encode(text), std::vector<std::int32_t>(expected.begin(), expected.end())) << text;
  }
}

// A model made the usual way, which adds a space at the start and has no words of its own to tell apart.
TEST_F(TokenizerTest, ModelsThatAddAPrefixAreEncodedWhole) {
  std::string lines;
  for (const std::string& text : sample_texts()) {
    lines += text;
  }
  write_file(*folder_ / "lines.txt", lines);
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--input=" + (*folder_ / "lines.txt") + " --model_prefix=" + (*folder_ / "plain") +
      " --vocab_size=330 --byte_fallback=true --model_type=bpe --hard_vocab_limit=false --minloglevel=2");
  ASSERT_TRUE(status.ok()) << status.ToString();
  const Tokenizer plain(*folder_ / "plain.model");
  std::string words = "The furnace feeds the river";
  while (words.size() < 30000) {
    words += " and the teacher follows the student";
  }
  sentencepiece::SentencePieceProcessor whole;
  ASSERT_TRUE(whole.Load(*folder_ / "plain.model").ok());
  std::vector<int> expected;
  ASSERT_TRUE(whole.Encode(words, &expected).ok());
  EXPECT_EQ(plain.encode(words), std::vector<std::int32_t>(expected.begin(), expected.end()));
  EXPECT_EQ(plain.decode(plain.encode(words)), words);
}

TEST_F(TokenizerTest, TrainingIsDeterministic) {
  train_tokenizer(sample_texts(), {.vocab_size = 400}, *folder_ / "again.model");
  EXPECT_EQ(read_file(*folder_ / "again.model"), read_file(*folder_ / "m.model"));
}

TEST_F(TokenizerTest, TrainsUnigramModels) {
  train_tokenizer(sample_texts(), {.vocab_size = 320, .kind = TokenizerKind::unigram}, *folder_ / "u.model");
  const Tokenizer unigram(*folder_ / "u.model");
  EXPECT_EQ(unigram.vocab_size(), 320);
  const std::string text = "The  lantern\n routes \u4e2d";
  EXPECT_EQ(unigram.decode(unigram.encode(text)), text);
}

TEST_F(TokenizerTest, RefusesVocabulariesThatDoNotSuitTheText) {
  const auto refusal = [&](const std::vector<std::string>& texts, std::int64_t vocab_size) {
    return message_of<base::ConfigError>(
        [&] { train_tokenizer(texts, {.vocab_size = vocab_size}, *folder_ / "no.model"); });
  };
  EXPECT_CONTAINS(refusal(sample_texts(), 299), "vocab_size=299");
  EXPECT_CONTAINS(refusal(sample_texts(), 100000), "vocab_size=100000");
  EXPECT_CONTAINS(refusal({"too little"}, 8192), "vocab_size=8192");
  EXPECT_CONTAINS(refusal({}, 8192), "vocab_size=8192");
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "no.model"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "no.model.partial"));
}

TEST_F(TokenizerTest, RefusesForeignModels) {
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { Tokenizer t(*folder_ / "none.model"); }),
                  "none.model");
  write_file(*folder_ / "bad.model", "this is no model");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { Tokenizer t(*folder_ / "bad.model"); }),
                  "not a SentencePiece");
  write_file(*folder_ / "empty.model", "");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { Tokenizer t(*folder_ / "empty.model"); }), "it is empty");
  write_file(*folder_ / "cut.model", read_file(*folder_ / "m.model").substr(0, 2000));
  EXPECT_CONTAINS(message_of<base::DataError>([&] { Tokenizer t(*folder_ / "cut.model"); }), "cut.model");
}

}  // namespace
}  // namespace athanor::data
