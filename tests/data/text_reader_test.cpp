#include "data/text_reader.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.hpp"
#include "base/memory.hpp"
#include "data_test_support.hpp"

namespace athanor::data {
namespace {

using tests::message_of;
using tests::TempFolder;
using tests::write_file;
using namespace std::string_literals;

const std::string mark = "\xEF\xBF\xBD";

// All documents, chunks joined; checks that chunks are marked and bounded as promised.
std::vector<std::string> documents_of(TextReader& reader, std::int64_t max_chunk = std::int64_t{1} << 20) {
  std::vector<std::string> documents;
  bool open = false;
  TextChunk chunk;
  while (reader.next(chunk)) {
    EXPECT_EQ(chunk.starts_document, !open);
    EXPECT_LE(static_cast<std::int64_t>(chunk.text.size()), 2 * max_chunk);
    if (!open) {
      documents.emplace_back();
    }
    documents.back() += chunk.text;
    open = !chunk.ends_document;
  }
  EXPECT_FALSE(open);
  EXPECT_EQ(reader.counts().documents, static_cast<std::int64_t>(documents.size()));
  return documents;
}

std::vector<std::string> read(const TextOptions& options) {
  TextReader reader(options);
  return documents_of(reader, options.max_chunk_bytes);
}

std::vector<std::string> read_plain(const std::string& bytes,
                                    DocumentSplit split = DocumentSplit::blank_lines,
                                    std::int64_t max_chunk = std::int64_t{1} << 20) {
  const TempFolder folder;
  write_file(folder / "x.txt", bytes);
  return read({.inputs = {folder / "x.txt"}, .split = split, .max_chunk_bytes = max_chunk});
}

using Documents = std::vector<std::string>;

TEST(TextReader, SplitsAtBlankLines) {
  EXPECT_EQ(read_plain("one\ntwo\n\nthree\n"), (Documents{"one\ntwo", "three"}));
  EXPECT_EQ(read_plain("\n \n\none\n\t\n\n  two  \n\n\n"), (Documents{"one", "  two  "}));
  EXPECT_EQ(read_plain("no newline at the end"), (Documents{"no newline at the end"}));
  EXPECT_EQ(read_plain(""), Documents{});
  EXPECT_EQ(read_plain("\n\n  \n"), Documents{});
}

TEST(TextReader, TakesWholeFiles) {
  EXPECT_EQ(read_plain("one\n\ntwo\n\n", DocumentSplit::files), (Documents{"one\n\ntwo\n\n"}));
  EXPECT_EQ(read_plain("one\n\ntwo", DocumentSplit::files), (Documents{"one\n\ntwo"}));
  EXPECT_EQ(read_plain(" \n\n", DocumentSplit::files), Documents{});
}

TEST(TextReader, HandlesLineEndsAndByteOrderMark) {
  EXPECT_EQ(read_plain("\xEF\xBB\xBFone\r\ntwo\r\n\r\nthree\rfour\r\n"),
            (Documents{"one\ntwo", "three\rfour"}));
  EXPECT_EQ(read_plain("one\r\n", DocumentSplit::files), (Documents{"one\n"}));
}

TEST(TextReader, RepairsAndCountsMalformedText) {
  const TempFolder folder;
  write_file(folder / "x.txt", "caf\xe9\n\n" + std::string(5000, 'a') + "\0\n\n\xff\xfe\n"s);
  TextReader reader({.inputs = {folder / "x.txt"}});
  EXPECT_EQ(documents_of(reader), (Documents{"caf" + mark, std::string(5000, 'a') + mark, mark + mark}));
  EXPECT_EQ(reader.counts().invalid_utf8, 4);
}

// Whatever the length of chunks, the documents are the same.
TEST(TextReader, LongLinesComeInParts) {
  std::string text;
  for (int i = 0; i < 400; ++i) {
    text += "word" + std::to_string(i) + (i % 7 == 0 ? "\u20ac\U0001F600" : " ");
  }
  const std::string bytes = text + "\r\nsecond line\r\n\r\n" + std::string(300, 'x') + "\n\n" +
                            std::string(64, 'y') + "\r\n\r\nend";
  const Documents expected = {text + "\nsecond line", std::string(300, 'x'), std::string(64, 'y'), "end"};
  for (const std::int64_t max_chunk : {16, 17, 31, 32, 63, 64, 65, 100, 1000, 100000}) {
    EXPECT_EQ(read_plain(bytes, DocumentSplit::blank_lines, max_chunk), expected) << max_chunk;
  }
}

TEST(TextReader, BlocksAndLineEndsMeetAnywhere) {
  // The reader's blocks are 1 MiB: put CR LF, a blank line and a character on the seam.
  for (std::size_t before = (1u << 20) - 6; before <= (1u << 20); ++before) {
    const std::string first(before, 'a');
    EXPECT_EQ(read_plain(first + "\r\n\r\n\u20acb\r\n"), (Documents{first, "\u20acb"})) << before;
    EXPECT_EQ(read_plain(first + "\u20ac\r\nc"), (Documents{first + "\u20ac\nc"})) << before;
  }
}

TEST(TextReader, MemoryDoesNotGrowWithTheLine) {
  const TempFolder folder;
  {
    std::ofstream file(folder / "x.txt", std::ios::binary);
    const std::string part(1 << 20, 'z');
    for (int i = 0; i < 256; ++i) {
      file << part;
    }
  }
  [[maybe_unused]] const std::int64_t before = base::peak_resident_bytes();
  TextReader reader({.inputs = {folder / "x.txt"}});
  TextChunk chunk;
  std::int64_t bytes = 0;
  std::int64_t chunks = 0;
  while (reader.next(chunk)) {
    bytes += static_cast<std::int64_t>(chunk.text.size());
    ++chunks;
  }
  EXPECT_EQ(bytes, std::int64_t{256} << 20);
  EXPECT_GE(chunks, 256);
  EXPECT_EQ(reader.counts().documents, 1);
#ifndef __SANITIZE_ADDRESS__  // which keeps freed memory for a while
  EXPECT_LT(base::peak_resident_bytes() - before, std::int64_t{32} << 20);
#endif
}

TEST(TextReader, ReadsJsonLines) {
  const TempFolder folder;
  write_file(
      folder / "x.jsonl",
      "\xEF\xBB\xBF{\"text\": \"one\\n\\ntwo\", \"id\": 1}\r\n\n"
      "{\"id\": 2, \"text\": \"caf\\u00e9 \\ud83d\\ude00\"}\n{\"text\": \"  \"}\n{\"text\": \"last\"}");
  EXPECT_EQ(read({.inputs = {folder / "x.jsonl"}}),
            (Documents{"one\n\ntwo", "caf\u00e9 \U0001F600", "last"}));
  write_file(folder / "y.ndjson", "{\"content\": \"x\", \"text\": 3}\n");
  EXPECT_EQ(read({.inputs = {folder / "y.ndjson"}, .json_field = "content"}), (Documents{"x"}));
}

TEST(TextReader, RepairsJsonText) {
  const TempFolder folder;
  write_file(folder / "x.jsonl",
             "{\"text\": \"a\\ud83d b\\\\ud83d \\ude00\"}\n{\"text\": \"c\\u0000d\xff\"}\n{\"text\": "
             "\"\\ud83d\\ude00\"}\n");
  TextReader reader({.inputs = {folder / "x.jsonl"}});
  EXPECT_EQ(documents_of(reader),
            (Documents{"a" + mark + " b\\ud83d " + mark, "c" + mark + "d" + mark, "\U0001F600"}));
  EXPECT_EQ(reader.counts().invalid_utf8, 4);
}

TEST(TextReader, CutsLongJsonDocuments) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) {
    text += "\u20acwort ";
  }
  write_file(folder / "x.jsonl", "{\"text\": \"" + text + "\"}\n{\"text\": \"next\"}\n");
  for (const std::int64_t max_chunk : {16, 50, 100000}) {
    EXPECT_EQ(read({.inputs = {folder / "x.jsonl"}, .max_chunk_bytes = max_chunk}),
              (Documents{text, "next"}));
  }
  EXPECT_CONTAINS(message_of<base::DataError>([&] {
                    read({.inputs = {folder / "x.jsonl"}, .max_chunk_bytes = 16, .max_json_line_bytes = 100});
                  }),
                  "line 1 is longer than 100 bytes");
}

TEST(TextReader, JsonErrorsNameTheLine) {
  const TempFolder folder;
  const auto error = [&](const std::string& bad_line) {
    write_file(folder / "x.jsonl", "{\"text\": \"good\"}\n\n" + bad_line + "\n{\"text\": \"good\"}\n");
    const std::string message = message_of<base::DataError>([&] { read({.inputs = {folder / "x.jsonl"}}); });
    EXPECT_CONTAINS(message, "x.jsonl line 3 ");
    return message;
  };
  EXPECT_CONTAINS(error("{\"text\": \"cut off"), "is not JSON");
  EXPECT_CONTAINS(error("plain text"), "is not JSON");
  EXPECT_CONTAINS(error("[\"text\"]"), "is a JSON array");
  EXPECT_CONTAINS(error("{\"content\": \"x\"}"), "no member \"text\"");
  EXPECT_CONTAINS(error("{\"text\": null}"), "has a null as \"text\"");
}

TEST(TextReader, ReadsFoldersInOrder) {
  const TempFolder folder;
  write_file(folder / "d/b.txt", "second");
  write_file(folder / "d/a/z.md", "first");
  write_file(folder / "d/c.jsonl", "{\"text\": \"third\"}");
  write_file(folder / "d/.hidden", "no");
  write_file(folder / "d/.git/x", "no");
  write_file(folder / "e.txt", "fourth");
  TextReader reader({.inputs = {folder / "d", folder / "e.txt"}});
  EXPECT_EQ(reader.total_bytes(), 6 + 5 + 17 + 6);
  EXPECT_EQ(documents_of(reader), (Documents{"first", "second", "third", "fourth"}));
  EXPECT_EQ(reader.counts().files, 4);
  EXPECT_EQ(reader.counts().bytes, reader.total_bytes());
}

TEST(TextReader, RefusesWhatIsNoText) {
  const TempFolder folder;
  EXPECT_CONTAINS(message_of<base::MissingInputError>([&] { read({.inputs = {folder / "none"}}); }), "none");
  std::filesystem::create_directory(folder / "empty");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { read({.inputs = {folder / "empty"}}); }),
                  "holds no files");
  EXPECT_CONTAINS(message_of<base::DataError>([&] { read({.inputs = {"/dev/null"}}); }),
                  "not a regular file");
  const auto refusal = [&](const std::string& bytes) {
    write_file(folder / "x.txt", bytes);
    return message_of<base::DataError>([&] { read({.inputs = {folder / "x.txt"}}); });
  };
  EXPECT_CONTAINS(refusal("\xff\xfeh\0i\0"s), "iconv");
  EXPECT_CONTAINS(refusal("\xfe\xff\0h\0i"s), "iconv");
  EXPECT_CONTAINS(refusal("h\0i\0"s), "a NUL");
  EXPECT_CONTAINS(refusal("\x1f\x8b\x08\0rest"s), "gunzip");
  EXPECT_CONTAINS(refusal("\x28\xb5\x2f\xfd rest"s), "unzstd");
}

}  // namespace
}  // namespace athanor::data
