#include "checkpoint/safetensors_folder.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class SafetensorsFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() /
              (std::string("athanor_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  static std::vector<SafetensorsEntry> entries() {
    return {{"c", "F32", {2, 3}, 0, 0},
            {"a", "BF16", {5}, 0, 0},
            {"b", "F32", {1}, 0, 0},
            {"empty", "F32", {0, 4}, 0, 0}};
  }
  static std::string contents(const SafetensorsEntry& entry) {
    std::int64_t bytes = safetensors_element_bytes(entry.dtype);
    for (const std::int64_t extent : entry.shape) {
      bytes *= extent;
    }
    std::string data(static_cast<std::size_t>(bytes), '\0');
    std::iota(data.begin(), data.end(), entry.name[0]);
    return data;
  }
  // Writes all tensors; returns the number of files.
  std::int64_t write(std::int64_t max_file_bytes) {
    SafetensorsFolderWriter writer(folder_.string(), entries(), max_file_bytes);
    for (const SafetensorsEntry& entry : entries()) {
      writer.write(entry.name, contents(entry).data());
    }
    writer.finish();
    return writer.num_files();
  }
  json index() const { return json::parse(std::ifstream(folder_ / "model.safetensors.index.json")); }
  void write_index(const json& value) const {
    std::ofstream(folder_ / "model.safetensors.index.json") << value;
  }
  template <typename Error>
  std::string refusal() const {
    try {
      SafetensorsFolder{folder_.string()};
    } catch (const Error& error) {
      return error.what();
    }
    ADD_FAILURE() << "was read";
    return "";
  }

  fs::path folder_;
};

TEST_F(SafetensorsFolderTest, OneFileReadsBack) {
  EXPECT_EQ(write(1000), 1);
  EXPECT_FALSE(fs::exists(folder_ / "model.safetensors.index.json"));
  const SafetensorsFolder read(folder_.string());
  ASSERT_EQ(read.tensors().size(), 4u);
  for (const SafetensorsEntry& entry : entries()) {
    const SafetensorsEntry& found = read.tensors().at(entry.name);
    EXPECT_EQ(found.shape, entry.shape);
    EXPECT_EQ(found.dtype, entry.dtype);
    std::string data(contents(entry).size(), '\0');
    read.read(entry.name, 0, found.end - found.begin, data.data());
    EXPECT_EQ(data, contents(entry)) << entry.name;
  }
  std::string part(2, '\0');
  read.read("a", 3, 2, part.data());
  EXPECT_EQ(part, contents(entries()[1]).substr(3, 2));
}

TEST_F(SafetensorsFolderTest, ManyFilesHaveAnIndex) {
  EXPECT_EQ(write(14), 2);  // a and b together, c is larger than the limit, the empty one goes with it
  const json written = index();
  EXPECT_EQ(written["weight_map"]["a"], "model-00001-of-00002.safetensors");
  EXPECT_EQ(written["weight_map"]["c"], "model-00002-of-00002.safetensors");
  EXPECT_EQ(written["metadata"]["total_size"], 10 + 4 + 24);
  EXPECT_EQ(written["metadata"]["total_parameters"], 5 + 1 + 6);
  const SafetensorsFolder read(folder_.string());
  std::string data(24, '\0');
  read.read("c", 0, 24, data.data());
  EXPECT_EQ(data, contents(entries()[0]));
  EXPECT_THAT(read.file_of("c"), HasSubstr("model-00002-of-00002"));
}

TEST_F(SafetensorsFolderTest, WriterWantsEveryTensor) {
  SafetensorsFolderWriter writer(folder_.string(), entries(), 1000);
  writer.write("a", contents(entries()[1]).data());
  EXPECT_THROW(writer.finish(), base::InternalError);
}

TEST_F(SafetensorsFolderTest, RefusesFoldersWithoutWeights) {
  EXPECT_THAT(refusal<base::MissingInputError>(), HasSubstr("holds no weights"));
  fs::remove(folder_);
  EXPECT_THAT(refusal<base::MissingInputError>(), HasSubstr("not a folder"));
}

TEST_F(SafetensorsFolderTest, RefusesAnIndexThatIsNotTheFiles) {
  write(14);
  const json good = index();
  json bad = good;
  bad["weight_map"]["a"] = "../other.safetensors";
  write_index(bad);
  EXPECT_THAT(refusal<base::DataError>(), HasSubstr("not a plain file name"));
  bad = good;
  bad["weight_map"]["a"] = "model-00003-of-00003.safetensors";
  write_index(bad);
  EXPECT_THAT(refusal<base::MissingInputError>(), HasSubstr("model-00003-of-00003.safetensors is missing"));
  bad = good;
  bad["weight_map"]["d"] = good["weight_map"]["a"];
  write_index(bad);
  EXPECT_THAT(refusal<base::DataError>(), HasSubstr("tensor d is not in it"));
  bad = good;
  bad["weight_map"].erase("a");
  write_index(bad);
  EXPECT_THAT(refusal<base::DataError>(), HasSubstr("tensor a should not be in it"));
  bad = good;
  bad["weight_map"]["a"] = good["weight_map"]["c"];
  write_index(bad);
  EXPECT_THAT(refusal<base::DataError>(), HasSubstr("should not be in it"));
  for (const json& value : {json::array(), json::object(), json{{"weight_map", json::array()}}}) {
    write_index(value);
    EXPECT_THAT(refusal<base::DataError>(), HasSubstr("no weight_map"));
  }
}

TEST_F(SafetensorsFolderTest, RefusesTruncatedFiles) {
  write(14);
  const fs::path file = folder_ / "model-00002-of-00002.safetensors";
  for (const std::uintmax_t bytes : {fs::file_size(file) - 1, std::uintmax_t{9}, std::uintmax_t{0}}) {
    fs::resize_file(file, bytes);
    EXPECT_THAT(refusal<base::DataError>(), HasSubstr("model-00002-of-00002"));
  }
}

}  // namespace
}  // namespace athanor::checkpoint
