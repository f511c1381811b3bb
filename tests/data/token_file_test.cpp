#include "data/token_file.hpp"

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::message_of;
using tests::read_file;
using tests::TempFolder;
using tests::write_file;
using tests::write_tokens;
using namespace std::string_literals;

// Three sequences of 2, 1 and 3 ids; two documents: the first holds two sequences.
// Spelled out byte by byte from the format's description, not made by our writer.
const std::string index_int32 =
    "MMIDIDX\0\0"s                     // magic
    "\x01\0\0\0\0\0\0\0"s              // version
    "\x04"s                            // int32
    "\x03\0\0\0\0\0\0\0"s              // sequences
    "\x03\0\0\0\0\0\0\0"s              // document entries
    "\x02\0\0\0\x01\0\0\0\x03\0\0\0"s  // sizes
    "\0\0\0\0\0\0\0\0"s                // positions in bytes
    "\x08\0\0\0\0\0\0\0"s
    "\x0c\0\0\0\0\0\0\0"s
    "\0\0\0\0\0\0\0\0"s  // documents
    "\x02\0\0\0\0\0\0\0"s
    "\x03\0\0\0\0\0\0\0"s;
const std::string bin_int32 =
    "\x05\0\0\0\xff\xff\x01\0"s
    "\x07\0\0\0"s
    "\x01\0\0\0\x02\0\0\0\0\0\x01\0"s;
const std::vector<std::int32_t> ids_int32 = {5, 131071, 7, 1, 2, 65536};

// The same shape in uint16.
std::string index_uint16() {
  std::string index = index_int32;
  index[17] = 8;
  index[34 + 12 + 8] = 4;
  index[34 + 12 + 16] = 6;
  return index;
}
const std::string bin_uint16 = "\x05\0\xff\xff\x07\0\x01\0\x02\0\0\x80"s;
const std::vector<std::int32_t> ids_uint16 = {5, 65535, 7, 1, 2, 32768};

std::vector<std::int32_t> all_ids(const TokenFile& file) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(file.num_tokens()));
  file.read(0, ids);
  return ids;
}

std::string error_for(const std::string& index, const std::string& bin) {
  const TempFolder folder;
  write_file(folder / "x.idx", index);
  write_file(folder / "x.bin", bin);
  const std::string message = message_of<base::DataError>([&] { TokenFile file(folder / "x"); });
  EXPECT_CONTAINS(message, folder.path());
  return message;
}

TEST(TokenFile, ReadsInt32WrittenElsewhere) {
  const TempFolder folder;
  write_file(folder / "x.idx", index_int32);
  write_file(folder / "x.bin", bin_int32);
  const TokenFile file(folder / "x");
  EXPECT_EQ(file.type(), TokenType::int32);
  EXPECT_EQ(file.num_sequences(), 3);
  EXPECT_EQ(file.num_documents(), 2);
  EXPECT_EQ(all_ids(file), ids_int32);
  EXPECT_EQ(file.max_token_id(), 131071);
  EXPECT_EQ(file.document_start(0), 0);
  EXPECT_EQ(file.document_start(1), 3);
  EXPECT_EQ(file.document_start(2), 6);
  EXPECT_EQ(file.sequence_start(1), 2);
  EXPECT_EQ(file.first_document_from(0), 0);
  EXPECT_EQ(file.first_document_from(1), 1);
  EXPECT_EQ(file.first_document_from(3), 1);
  EXPECT_EQ(file.first_document_from(4), 2);
}

TEST(TokenFile, ReadsUint16WrittenElsewhere) {
  const TempFolder folder;
  write_file(folder / "x.idx", index_uint16());
  write_file(folder / "x.bin", bin_uint16);
  const TokenFile file(folder / "x.bin");  // either of the two names will do
  EXPECT_EQ(file.type(), TokenType::uint16);
  EXPECT_EQ(all_ids(file), ids_uint16);
  EXPECT_EQ(file.max_token_id(), 65535);
  std::vector<std::int32_t> middle(3);
  file.read(2, middle);
  EXPECT_EQ(middle, (std::vector<std::int32_t>{7, 1, 2}));
}

TEST(TokenFile, ReadsOtherIntegerTypes) {
  const TempFolder folder;
  const std::vector<std::pair<TokenType, std::size_t>> types = {
      {TokenType::uint8, 1}, {TokenType::int8, 1}, {TokenType::int16, 2}, {TokenType::int64, 8}};
  for (const auto& [type, bytes] : types) {
    std::string index = index_int32;
    index[17] = static_cast<char>(type);
    index[34 + 12 + 8] = static_cast<char>(2 * bytes);
    index[34 + 12 + 16] = static_cast<char>(3 * bytes);
    std::string bin(6 * bytes, '\0');
    for (std::size_t i = 0; i < 6; ++i) {
      bin[i * bytes] = static_cast<char>(i + 1);
    }
    write_file(folder / "x.idx", index);
    write_file(folder / "x.bin", bin);
    const TokenFile file(folder / "x");
    EXPECT_EQ(all_ids(file), (std::vector<std::int32_t>{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(file.max_token_id(), 6);
  }
}

TEST(TokenFile, FollowsPositionsThatAreNotEndToEnd) {
  const TempFolder folder;
  std::string index = index_int32;
  index[34 + 12] = 12;  // sequence 0 lies behind the others
  index[34 + 12 + 8] = 20;
  index[34 + 12 + 16] = 0;
  write_file(folder / "x.idx", index);
  write_file(folder / "x.bin", bin_int32.substr(12) + bin_int32.substr(0, 12) + "unused!!");
  const TokenFile file(folder / "x");
  EXPECT_EQ(all_ids(file), ids_int32);
  for (std::int64_t first = 0; first < 6; ++first) {
    std::vector<std::int32_t> rest(static_cast<std::size_t>(6 - first));
    file.read(first, rest);
    EXPECT_EQ(rest, std::vector<std::int32_t>(ids_int32.begin() + first, ids_int32.end()));
  }
  EXPECT_EQ(file.document_start(1), 3);
}

TEST(TokenFile, AcceptsTextModesAndRefusesOthers) {
  const TempFolder folder;
  write_file(folder / "x.idx", index_int32 + "\0\0\0"s);
  write_file(folder / "x.bin", bin_int32);
  EXPECT_EQ(all_ids(TokenFile(folder / "x")), ids_int32);
  EXPECT_CONTAINS(error_for(index_int32 + "\0\x01\0"s, bin_int32), "sequence 1 has mode 1");
}

TEST(TokenFile, TakesAnUnclosedLastDocument) {
  const TempFolder folder;
  std::string index = index_int32.substr(0, index_int32.size() - 8);
  index[26] = 2;
  write_file(folder / "x.idx", index);
  write_file(folder / "x.bin", bin_int32);
  const TokenFile file(folder / "x");
  EXPECT_EQ(file.num_documents(), 2);
  EXPECT_EQ(file.document_start(1), 3);
  EXPECT_EQ(file.document_start(2), 6);
}

TEST(TokenFile, RefusesEveryTruncationOfTheIndex) {
  for (std::size_t size = 0; size < index_int32.size(); ++size) {
    const std::string message = error_for(index_int32.substr(0, size), bin_int32);
    EXPECT_CONTAINS(message, size < 9 ? "is not a token index" : "is truncated") << size;
    if (size >= 34) {
      EXPECT_CONTAINS(message, "94 bytes");
      EXPECT_CONTAINS(message, std::to_string(size) + " bytes");
    }
  }
}

TEST(TokenFile, RefusesEveryTruncationOfTheIds) {
  for (std::size_t size = 0; size < bin_int32.size(); ++size) {
    const std::string message = error_for(index_int32, bin_int32.substr(0, size));
    EXPECT_CONTAINS(message, "describes 24 bytes, the file has " + std::to_string(size));
    EXPECT_CONTAINS(message, "truncated");
  }
  EXPECT_CONTAINS(error_for(index_int32, bin_int32 + "more"), "describes 24 bytes, the file has 28");
}

TEST(TokenFile, RefusesForeignAndInconsistentIndexes) {
  EXPECT_CONTAINS(error_for("TNTIDX\0\0\0 something else altogether"s, ""), "does not begin with MMIDIDX");
  const auto with = [](std::size_t at, char value) {
    std::string index = index_int32;
    index[at] = value;
    return index;
  };
  EXPECT_CONTAINS(error_for(with(9, 2), bin_int32), "version 2");
  EXPECT_CONTAINS(error_for(with(17, 6), bin_int32), "type code 6");
  EXPECT_CONTAINS(error_for(with(25, '\x7f'), bin_int32), "more than any file");        // 2^62 sequences
  EXPECT_CONTAINS(error_for(with(18, 2), bin_int32), "take 82 bytes");                  // a sequence too few
  EXPECT_CONTAINS(error_for(with(37, '\x80'), bin_int32), "sequence 0 has -");          // a negative size
  EXPECT_CONTAINS(error_for(with(34 + 12 + 7, '\x80'), bin_int32), "sequence 0 has");   // a negative position
  EXPECT_CONTAINS(error_for(with(34 + 12 + 15, '\x7f'), bin_int32), "does not match");  // far outside
  EXPECT_CONTAINS(error_for(with(70, 1), bin_int32), "document entry 0 is 1");
  EXPECT_CONTAINS(error_for(with(78, 9), bin_int32), "document entry 1 is 9");
  EXPECT_CONTAINS(error_for(with(86, 1), bin_int32), "document entry 2 is 1");
  std::string none = index_int32.substr(0, 70);
  none[26] = 0;
  EXPECT_CONTAINS(error_for(none, bin_int32), "no document entries");
}

TEST(TokenFile, NamesMissingFiles) {
  const TempFolder folder;
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { TokenFile file(folder / "x"); }),
                  "x.idx does not exist");
  write_file(folder / "x.idx", index_int32);
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { TokenFile file(folder / "x"); }),
                  "x.bin does not exist");
}

TEST(TokenFile, RefusesNegativeIdsWhenTheyAreRead) {
  const TempFolder folder;
  std::string bin = bin_int32;
  bin[11] = '\xff';
  write_file(folder / "x.idx", index_int32);
  write_file(folder / "x.bin", bin);
  const TokenFile file(folder / "x");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { all_ids(file); }), "at 2");
}

TEST(TokenFileWriter, WritesTheFormatByteForByte) {
  const TempFolder folder;
  TokenFileWriter writer(folder / "sub/x", TokenType::int32);
  EXPECT_FALSE(std::filesystem::exists(folder / "sub/x.bin"));
  writer.add(std::vector<std::int32_t>{5, 131071});
  writer.add(std::vector<std::int32_t>{7});
  writer.end_document();
  writer.add(std::vector<std::int32_t>{1, 2, 65536});
  writer.end_document();
  EXPECT_EQ(writer.num_tokens(), 6);
  EXPECT_EQ(writer.num_documents(), 2);
  writer.finish();
  EXPECT_EQ(read_file(folder / "sub/x.bin"), bin_int32);
  // One sequence a document: sizes 3 and 3.
  const std::string expected =
      "MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x04\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"s
      "\x03\0\0\0\x03\0\0\0"s
      "\0\0\0\0\0\0\0\0\x0c\0\0\0\0\0\0\0"s
      "\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"s;
  EXPECT_EQ(read_file(folder / "sub/x.idx"), expected);
  EXPECT_FALSE(std::filesystem::exists(folder / "sub/x.bin.partial"));
}

TEST(TokenFileWriter, RoundTripsUint16WithEmptyDocuments) {
  const TempFolder folder;
  write_tokens(folder / "x", {{}, {1, 65535}, {}, {3}, {}});
  const TokenFile file(folder / "x");
  EXPECT_EQ(file.num_documents(), 5);
  EXPECT_EQ(all_ids(file), (std::vector<std::int32_t>{1, 65535, 3}));
  EXPECT_EQ(file.document_start(1), 0);
  EXPECT_EQ(file.document_start(3), 2);
  write_tokens(folder / "empty", {});
  EXPECT_EQ(TokenFile(folder / "empty").num_tokens(), 0);
  EXPECT_EQ(TokenFile(folder / "empty").max_token_id(), -1);
}

TEST(TokenFileWriter, RefusesIdsThatDoNotFit) {
  const TempFolder folder;
  TokenFileWriter writer(folder / "x", TokenType::uint16);
  EXPECT_CONTAINS(message_of<base::DataError>([&] { writer.add(std::vector<std::int32_t>{65536}); }),
                  "65536");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { writer.add(std::vector<std::int32_t>{-1}); }), "-1");
  EXPECT_EQ(token_type_for(65536), TokenType::uint16);
  EXPECT_EQ(token_type_for(65537), TokenType::int32);
}

TEST(TokenFileWriter, LeavesNothingWithoutFinish) {
  const TempFolder folder;
  { TokenFileWriter writer(folder / "x", TokenType::uint16); }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(TokenFileWriter, ReportsWhatCannotBeWritten) {
  const TempFolder folder;
  write_file(folder / "file", "");
  EXPECT_CONTAINS(message_of<base::CannotCreateError>(
                      [&] { TokenFileWriter writer(folder / "file/x", TokenType::uint16); }),
                  "file cannot be created");
  // A full disk: the partial file is the device on which every write fails.
  std::filesystem::create_symlink("/dev/full", folder / "x.bin.partial");
  TokenFileWriter writer(folder / "x", TokenType::int32);
  const std::vector<std::int32_t> ids(1 << 20, 1);
  EXPECT_CONTAINS(message_of<base::IoError>([&] { writer.add(ids); }), "cannot be written (No space left");
}

TEST(TokenFile, FingerprintFollowsTheIndex) {
  const TempFolder folder;
  write_tokens(folder / "a", {{1, 2, 3}, {4}});
  write_tokens(folder / "b", {{1, 2}, {3, 4}});
  write_tokens(folder / "c", {{9, 9, 9}, {9}});
  EXPECT_NE(TokenFile(folder / "a").fingerprint(), TokenFile(folder / "b").fingerprint());
  EXPECT_EQ(TokenFile(folder / "a").fingerprint(), TokenFile(folder / "c").fingerprint());
}

}  // namespace
}  // namespace athanor::data
