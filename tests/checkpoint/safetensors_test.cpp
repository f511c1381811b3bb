#include "checkpoint/safetensors.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.hpp"

namespace athanor::checkpoint {
namespace {

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() /
             (std::string("athanor_") + testing::UnitTest::GetInstance()->current_test_info()->name() +
              ".safetensors"))
                .string();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void write(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
  // A file with this JSON header and that many bytes of data.
  void write_header(const std::string& json, std::size_t data_bytes) {
    const std::uint64_t length = json.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    write(bytes + json + std::string(data_bytes, 'x'));
  }
  // The message of the DataError that reading throws; fails when there is none.
  std::string refusal() {
    try {
      read_safetensors_header(path_);
    } catch (const base::DataError& error) {
      return error.what();
    }
    ADD_FAILURE() << "was read";
    return "";
  }

  std::string path_;
};

TEST_F(Safetensors, LayoutReadsBack) {
  SafetensorsHeader header;
  header.metadata["format"] = "pt";
  header.entries = {{"b", "F32", {2, 3}, 0, 0}, {"a", "BF16", {5}, 0, 0}, {"none", "F64", {0, 4}, 0, 0}};
  const std::string bytes = layout_safetensors(header);
  EXPECT_EQ(bytes.size() % 8, 0u);
  write(bytes + std::string(24 + 10, 'x'));
  const SafetensorsHeader read = read_safetensors_header(path_);
  EXPECT_EQ(read.data_begin, static_cast<std::int64_t>(bytes.size()));
  EXPECT_EQ(read.metadata.at("format"), "pt");
  ASSERT_NE(read.find("a"), nullptr);
  EXPECT_EQ(read.find("a")->begin, 24);
  EXPECT_EQ(read.find("a")->end, 34);
  EXPECT_EQ(read.find("b")->shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(read.find("none")->begin, read.find("none")->end);
  EXPECT_EQ(read.find("c"), nullptr);
}

TEST_F(Safetensors, RefusesDamagedFiles) {
  EXPECT_THROW(read_safetensors_header(path_), base::MissingInputError);
  write("1234");
  EXPECT_NE(refusal().find("truncated"), std::string::npos);
  write(std::string(8, '\xff') + "{}");
  EXPECT_NE(refusal().find("header length"), std::string::npos);
  write_header("[1]", 0);
  EXPECT_NE(refusal().find("not a JSON object"), std::string::npos);
  write_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7);
  EXPECT_NE(refusal().find("truncated"), std::string::npos);
  write_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9);
  EXPECT_NE(refusal().find("holds 9 bytes"), std::string::npos);
  write_header(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8);
  EXPECT_NE(refusal().find("tensor a spans"), std::string::npos);
  write_header(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}})", 8);
  EXPECT_NE(refusal().find("impossible shape"), std::string::npos);
  write_header(R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", 8);
  EXPECT_NE(refusal().find("impossible shape"), std::string::npos);
  write_header(R"({"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", 8);
  EXPECT_NE(refusal().find("dtype X9"), std::string::npos);
  write_header(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      8);
  EXPECT_NE(refusal().find("overlap"), std::string::npos);
  for (const char* entry : {R"({"dtype":"F32"})", R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})",
                            R"({"dtype":"F32","shape":[1e300],"data_offsets":[0,8]})",
                            R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})",
                            R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})",
                            R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,9]})", R"({"dtype":4})", "7"}) {
    write_header(std::string(R"({"a":)") + entry + "}", 8);
    EXPECT_NE(refusal().find("malformed"), std::string::npos) << entry;
  }
  write_header(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,-9223372036854775808]}})", 8);
  EXPECT_NE(refusal().find("tensor a spans"), std::string::npos);
  write_header(
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
      8);
  EXPECT_NE(refusal().find("there twice"), std::string::npos);
  write_header(std::string(100'000, '['), 8);
  EXPECT_NE(refusal().find("not a JSON object"), std::string::npos);
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_NE(refusal().find("is no file"), std::string::npos);
}

}  // namespace
}  // namespace athanor::checkpoint
