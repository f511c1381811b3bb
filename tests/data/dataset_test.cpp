#include "data/dataset.hpp"

#include <algorithm>
#include <map>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::counting;
using tests::message_of;
using tests::TempFolder;
using tests::write_file;
using tests::write_tokens;

std::vector<std::int32_t> row(const std::vector<std::int32_t>& values, const Batch& batch,
                              std::int64_t index) {
  return {values.begin() + index * batch.seq, values.begin() + (index + 1) * batch.seq};
}

TEST(Sources, AreParsed) {
  const auto sources = parse_sources("corpus/prose-train, corpus/code-train.bin:0.5 ,x:2:prose");
  ASSERT_EQ(sources.size(), 3u);
  EXPECT_EQ(sources[0].path, "corpus/prose-train");
  EXPECT_EQ(sources[0].weight, 1.0);
  EXPECT_EQ(sources[0].domain, "prose-train");
  EXPECT_EQ(sources[1].path, "corpus/code-train");
  EXPECT_EQ(sources[1].weight, 0.5);
  EXPECT_EQ(sources[1].domain, "code-train");
  EXPECT_EQ(sources[2].domain, "prose");
  EXPECT_TRUE(parse_sources("").empty());
}

TEST(Sources, RefuseWhatCannotBeMeant) {
  const auto refusal = [](const std::string& list) {
    return message_of<base::ConfigError>([&] { parse_sources(list); });
  };
  for (const char* weight : {"0", "-1", "x", "1x", "", "inf", "nan", "1e400"}) {
    EXPECT_CONTAINS(refusal("good,path:" + std::string(weight) + ":d"),
                    "\"path:" + std::string(weight) + ":d\"");
  }
  EXPECT_CONTAINS(refusal("a,,b"), "cannot be read");
  EXPECT_CONTAINS(refusal(":1"), "cannot be read");
  EXPECT_CONTAINS(refusal("a:1:b:c"), "cannot be read");
  EXPECT_CONTAINS(refusal("a:1:"), "names no domain");
  EXPECT_CONTAINS(refusal("folder/"), "names no domain");
  EXPECT_CONTAINS(refusal("a:1:d,a:2:d"), "listed twice");
  EXPECT_CONTAINS(refusal("x/train,y/train"), "domain \"train\"");
  EXPECT_CONTAINS(refusal("x/train:1:code,y/code"), "domain \"code\"");
  EXPECT_EQ(parse_sources("x/train:1:code,y/train:1:code").size(), 2u);
}

TEST(Dataset, CutsThePackedStreamIntoSamples) {
  const TempFolder folder;
  write_tokens(folder / "a", {counting(0, 7), counting(7, 3)});
  write_tokens(folder / "b", {counting(10, 8)}, TokenType::int32);
  const Dataset dataset({.sources = {{folder / "a", 1.0, "d"}, {folder / "b", 2.0, "d"}}, .seq = 4});
  EXPECT_EQ(dataset.domain_names(), (std::vector<std::string>{"d"}));
  EXPECT_EQ(dataset.num_tokens(), 18);
  EXPECT_EQ(dataset.num_samples(), 4);  // 17 tokens are used; one is left over
  EXPECT_EQ(dataset.max_token_id(), 17);
  const Batch batch = dataset.read_in_order(0, 0, 10);
  EXPECT_EQ(batch.rows, 4);
  EXPECT_EQ(batch.tokens, counting(0, 16));
  EXPECT_EQ(batch.labels, counting(1, 16));
  EXPECT_EQ(row(batch.positions, batch, 2), counting(0, 4));
  EXPECT_EQ(batch.documents, std::vector<std::int32_t>(16, 0));
  EXPECT_EQ(batch.sample_ids, (std::vector<std::int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(batch.valid_labels(), 16);
  EXPECT_EQ(dataset.read_in_order(0, 3, 2).tokens, counting(12, 4));
  EXPECT_EQ(dataset.read_in_order(0, 4, 2).rows, 0);
}

TEST(Dataset, TailNeedsTheLabelOfItsLastToken) {
  const TempFolder folder;
  write_tokens(folder / "eight", {counting(0, 8)});
  write_tokens(folder / "nine", {counting(0, 9)});
  EXPECT_EQ(Dataset({.sources = {{folder / "eight", 1.0, ""}}, .seq = 4}).num_samples(), 1);
  EXPECT_EQ(Dataset({.sources = {{folder / "nine", 1.0, ""}}, .seq = 4}).num_samples(), 2);
  EXPECT_EQ(Dataset({.sources = {{folder / "nine", 1.0, ""}}, .seq = 4}).domain_names()[0], "nine");
}

TEST(Dataset, MarksDocumentsWhenAttentionIsReset) {
  const TempFolder folder;
  // Documents start at 0, 3, 3 (the first of the two is empty), 6 and, in the second file, 10.
  write_tokens(folder / "a", {counting(0, 3), {}, counting(3, 3), counting(6, 4)});
  write_tokens(folder / "b", {counting(10, 7)});
  const Dataset dataset(
      {.sources = {{folder / "a", 1.0, "d"}, {folder / "b", 1.0, "d"}}, .seq = 8, .reset_attention = true});
  const Batch batch = dataset.read_in_order(0, 0, 2);
  EXPECT_EQ(row(batch.positions, batch, 0), (std::vector<std::int32_t>{0, 1, 2, 0, 1, 2, 0, 1}));
  EXPECT_EQ(row(batch.documents, batch, 0), (std::vector<std::int32_t>{0, 0, 0, 1, 1, 1, 2, 2}));
  EXPECT_EQ(row(batch.positions, batch, 1), (std::vector<std::int32_t>{0, 1, 0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(row(batch.documents, batch, 1), (std::vector<std::int32_t>{0, 0, 1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(batch.labels, counting(1, 16));  // labels across a boundary stay
}

TEST(Dataset, TrainingReadsEachSampleOnceAnEpochAndKeepsShares) {
  const TempFolder folder;
  write_tokens(folder / "a", {counting(0, 2 * 512 + 1)});
  write_tokens(folder / "b", {counting(5000, 2 * 256 + 1)});
  const Dataset dataset(
      {.sources = {{folder / "a", 1.0, "a"}, {folder / "b", 1.0, "b"}}, .seq = 2, .seed = 3});
  const Batch batch = dataset.read_training(0, 1024);
  std::map<std::int32_t, int> reads;  // by first token
  for (std::int64_t r = 0; r < batch.rows; ++r) {
    const std::int32_t first = batch.tokens[static_cast<std::size_t>(2 * r)];
    EXPECT_EQ(batch.domains[static_cast<std::size_t>(r)], first < 5000 ? 0 : 1);
    EXPECT_EQ(batch.labels[static_cast<std::size_t>(2 * r)], first + 1);
    EXPECT_EQ(batch.sample_ids[static_cast<std::size_t>(r)], r);
    ++reads[first];
  }
  EXPECT_EQ(reads.size(), 512u + 256u);
  for (const auto& [first, times] : reads) {
    EXPECT_EQ(times, first < 5000 ? 1 : 2);  // 512 positions of the period each
  }
}

TEST(Dataset, FilesOfADomainShareTheSumOfTheirWeights) {
  const TempFolder folder;
  for (const char* name : {"a", "b", "c"}) {
    write_tokens(folder / name, {counting(0, 100)});
  }
  const Dataset dataset(
      {.sources = {{folder / "a", 1.0, "x"}, {folder / "b", 1.0, "y"}, {folder / "c", 2.0, "x"}}, .seq = 4});
  const Batch batch = dataset.read_training(0, 1024);
  EXPECT_EQ(std::count(batch.domains.begin(), batch.domains.end(), 0), 768);
}

TEST(Dataset, ReadsAreTheSameInAnyOrderAndFromAnyThread) {
  const TempFolder folder;
  write_tokens(folder / "a", {counting(0, 3000)});
  write_tokens(folder / "b", {counting(4000, 900)});
  const Dataset dataset(
      {.sources = {{folder / "a", 3.0, "a"}, {folder / "b", 1.0, "b"}}, .seq = 7, .seed = 9});
  const Batch whole = dataset.read_training(1000, 96);
  std::vector<Batch> parts(4);
  std::vector<std::thread> threads;
  for (std::int64_t i = 0; i < 4; ++i) {
    threads.emplace_back(
        [&, i] { parts[static_cast<std::size_t>(i)] = dataset.read_training(1000 + (3 - i) * 24, 24); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::vector<std::int32_t> joined;
  for (std::size_t i = 4; i-- > 0;) {
    joined.insert(joined.end(), parts[i].tokens.begin(), parts[i].tokens.end());
  }
  EXPECT_EQ(joined, whole.tokens);
}

TEST(Dataset, RefusesWhatCannotBeTrainedOn) {
  const TempFolder folder;
  write_tokens(folder / "small", {counting(0, 8)});
  write_tokens(folder / "empty", {});
  const auto open = [&](const std::string& name, std::int64_t seq) {
    Dataset dataset({.sources = {{folder / name, 1.0, ""}}, .seq = seq});
  };
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { open("none", 4); }), "none.idx");
  const std::string small = message_of<base::DataError>([&] { open("small", 8); });
  EXPECT_CONTAINS(small, "domain small is smaller than one sample");
  EXPECT_CONTAINS(small, "8 tokens, batch.seq=8 takes 9");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { open("empty", 8); }), "0 tokens");
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] { open("small", 0); }), "batch.seq is 0");
  EXPECT_CONTAINS(message_of<base::ConfigError>([&] { Dataset dataset({.sources = {}}); }), "no data source");
}

TEST(Dataset, FingerprintFollowsTheFilesNotTheirPlace) {
  const TempFolder folder;
  write_tokens(folder / "a", {counting(0, 50)});
  write_tokens(folder / "elsewhere/a", {counting(0, 50)});
  write_tokens(folder / "b", {counting(0, 51)});
  const auto fingerprint = [&](const std::string& name) {
    return Dataset({.sources = {{folder / name, 1.0, "d"}}, .seq = 4}).fingerprint();
  };
  EXPECT_EQ(fingerprint("a"), fingerprint("elsewhere/a"));
  EXPECT_NE(fingerprint("a"), fingerprint("b"));
}

}  // namespace
}  // namespace athanor::data
