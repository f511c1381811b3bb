#include "data/tokenize.hpp"

#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data/token_file.hpp"
#include "data/tokenizer.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::message_of;
using tests::read_file;
using tests::TempFolder;
using tests::write_file;

constexpr int num_documents = 400;

std::string document(int i) {
  return "Document number " + std::to_string(i) + " tells of " + std::to_string(i * i) +
         (i % 2 == 0 ? " furnaces and bridges." : " rivers and lanterns.");
}

// A text file of different documents, and a JSON one with a few of them again.
void write_corpus(const TempFolder& folder) {
  std::string text;
  for (int i = 0; i < num_documents; ++i) {
    text += document(i) + "\n\n";
  }
  write_file(folder / "in/a.txt", text);
  std::string json;
  for (int i = 0; i < 40; ++i) {
    json += "{\"text\": \"" + document(i) + "\"}\n";
  }
  write_file(folder / "in/b.jsonl", json);
}

// The documents of a token file as text; each must end with the end-of-document id.
std::vector<std::string> documents_of(const std::string& prefix, const Tokenizer& tokenizer) {
  const TokenFile file(prefix);
  std::vector<std::string> documents;
  for (std::int64_t d = 0; d < file.num_documents(); ++d) {
    const std::int64_t start = file.document_start(d);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(file.document_start(d + 1) - start));
    file.read(start, ids);
    EXPECT_EQ(ids.back(), tokenizer.end_of_document());
    documents.push_back(tokenizer.decode(ids));
  }
  return documents;
}

TokenizeOptions options_for(const TempFolder& folder, const std::string& output) {
  TokenizeOptions options;
  options.inputs = {folder / "in"};
  options.output = folder / output;
  options.vocab_size = 330;
  return options;
}

TEST(Tokenize, TrainsATokenizerAndWritesAllDocuments) {
  const TempFolder folder;
  write_corpus(folder);
  const TokenizeResult result = run_tokenize(options_for(folder, "out/x"));
  EXPECT_TRUE(result.trained);
  EXPECT_EQ(result.tokenizer, folder / "out/x.model");
  EXPECT_EQ(result.vocab_size, 330);
  EXPECT_EQ(result.text.files, 2);
  EXPECT_EQ(result.text.documents, num_documents + 40);
  ASSERT_EQ(result.outputs.size(), 1u);
  EXPECT_EQ(result.outputs[0].documents, num_documents + 40);
  EXPECT_EQ(result.outputs[0].tokens, result.tokens);
  EXPECT_EQ(TokenFile(folder / "out/x").num_tokens(), result.tokens);
  EXPECT_EQ(TokenFile(folder / "out/x").type(), TokenType::uint16);
  const std::vector<std::string> documents = documents_of(folder / "out/x", Tokenizer(result.tokenizer));
  for (int i = 0; i < num_documents + 40; ++i) {
    EXPECT_EQ(documents[static_cast<std::size_t>(i)], document(i < num_documents ? i : i - num_documents));
  }
}

TEST(Tokenize, HeldOutPartIsDisjointAndComplete) {
  const TempFolder folder;
  write_corpus(folder);
  TokenizeOptions options = options_for(folder, "x");
  options.held_out = 0.1;
  const TokenizeResult result = run_tokenize(options);
  ASSERT_EQ(result.outputs.size(), 2u);
  const Tokenizer tokenizer(result.tokenizer);
  const auto train = documents_of(folder / "x-train", tokenizer);
  const auto valid = documents_of(folder / "x-valid", tokenizer);
  EXPECT_EQ(train.size() + valid.size(), static_cast<std::size_t>(num_documents + 40));
  EXPECT_GT(valid.size(), 20u);
  EXPECT_LT(valid.size(), 80u);
  const std::set<std::string> train_set(train.begin(), train.end());
  const std::set<std::string> valid_set(valid.begin(), valid.end());
  EXPECT_EQ(train_set.size() + valid_set.size(),
            static_cast<std::size_t>(num_documents));  // copies went together
  for (const std::string& text : valid_set) {
    EXPECT_EQ(train_set.count(text), 0u);
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "x.bin"));
}

TEST(Tokenize, OutputDependsOnSeedNotOnThreads) {
  const TempFolder folder;
  write_corpus(folder);
  TokenizeOptions options = options_for(folder, "one");
  options.held_out = 0.1;
  options.threads = 1;
  run_tokenize(options);
  options.output = folder / "three";
  options.threads = 3;
  run_tokenize(options);
  for (const char* name : {".model", "-train.bin", "-train.idx", "-valid.bin", "-valid.idx"}) {
    EXPECT_EQ(read_file(folder / ("one" + std::string(name))),
              read_file(folder / ("three" + std::string(name))));
  }
  options.output = folder / "other";
  options.seed = 1;
  options.tokenizer = folder / "one.model";
  run_tokenize(options);
  EXPECT_NE(read_file(folder / "one-valid.bin"), read_file(folder / "other-valid.bin"));
}

TEST(Tokenize, UsesAnExistingTokenizer) {
  const TempFolder folder;
  write_corpus(folder);
  TokenizeOptions options = options_for(folder, "");
  options.output = "";
  options.tokenizer = folder / "shared.model";
  const TokenizeResult only_tokenizer = run_tokenize(options);  // no output: nothing but the tokenizer
  EXPECT_TRUE(only_tokenizer.trained);
  EXPECT_TRUE(only_tokenizer.outputs.empty());
  const std::string model = read_file(folder / "shared.model");
  options.output = folder / "y.bin";
  options.vocab_size = 999;  // of a tokenizer to be trained: not this one
  const TokenizeResult result = run_tokenize(options);
  EXPECT_FALSE(result.trained);
  EXPECT_EQ(result.vocab_size, 330);
  EXPECT_EQ(result.outputs[0].prefix, folder / "y");
  EXPECT_EQ(read_file(folder / "shared.model"), model);
}

TEST(Tokenize, LongDocumentsStayOneDocument) {
  const TempFolder folder;
  write_corpus(folder);
  std::string text;
  for (int i = 0; text.size() < (3u << 20); ++i) {
    text += document(i % 5000) + "\n";
  }
  write_file(folder / "in/c.txt", text);
  const TokenizeResult result = run_tokenize(options_for(folder, "x"));
  EXPECT_EQ(result.outputs[0].documents, num_documents + 41);
  EXPECT_EQ(documents_of(folder / "x", Tokenizer(result.tokenizer)).back() + "\n", text);
}

TEST(Tokenize, RefusesBadInputBeforeLongWork) {
  const TempFolder folder;
  write_corpus(folder);
  const TokenizeOptions good = options_for(folder, "x");
  TokenizeOptions options = good;
  options.inputs = {folder / "none.txt"};
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { run_tokenize(options); }), "none.txt");
  options.inputs = {};
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] { run_tokenize(options); }), "--input");
  options = good;
  options.output = "";
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] { run_tokenize(options); }), "--output");
  options.output = folder / "in/a.txt/x";
  EXPECT_CONTAINS(message_of<base::CannotCreateError>([&] { run_tokenize(options); }), "a.txt");
  options = good;
  options.held_out = 0.7;
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] { run_tokenize(options); }), "0.7");
  write_file(folder / "blank.txt", " \n\n \n");
  options = good;
  options.inputs = {folder / "blank.txt"};
  EXPECT_CONTAINS(message_of<base::DataError>([&] { run_tokenize(options); }), "the corpus is empty");
  write_file(folder / "bad.model", "no model");
  options = good;
  options.tokenizer = folder / "bad.model";
  EXPECT_CONTAINS(message_of<base::DataError>([&] { run_tokenize(options); }), "bad.model");
  EXPECT_FALSE(std::filesystem::exists(folder / "x.bin"));
}

TEST(Tokenize, RefusesAnEmptyPart) {
  const TempFolder folder;
  write_corpus(folder);
  run_tokenize(options_for(folder, "x"));
  write_file(folder / "one.txt", "a single document");
  TokenizeOptions options = options_for(folder, "y");
  options.inputs = {folder / "one.txt"};
  options.tokenizer = folder / "x.model";
  options.held_out = 0.01;
  EXPECT_CONTAINS(message_of<base::DataError>([&] { run_tokenize(options); }), "no document falls into");
  EXPECT_FALSE(std::filesystem::exists(folder / "y-train.bin"));
  write_file(folder / "blank.txt", "\n");
  options.inputs = {folder / "blank.txt"};
  EXPECT_CONTAINS(message_of<base::DataError>([&] { run_tokenize(options); }), "the corpus is empty");
}

}  // namespace
}  // namespace athanor::data
