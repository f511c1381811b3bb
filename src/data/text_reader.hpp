// Text and JSON lines as a stream of documents, in bounded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace athanor::data {

/// What separates the documents of a plain text file.
enum class DocumentSplit { blank_lines, files };

struct TextOptions {
  /// Files, or folders that are searched for files (sorted by path, names that begin with a dot left out).
  /// .jsonl, .ndjson and .json are JSON lines, anything else is plain text.
  std::vector<std::string> inputs;
  DocumentSplit split = DocumentSplit::blank_lines;
  std::string json_field = "text";                       ///< member of each JSON line that holds the document
  std::int64_t max_chunk_bytes = std::int64_t{1} << 20;  ///< longer documents come in several chunks
  std::int64_t max_json_line_bytes = std::int64_t{1} << 31;  ///< a JSON line is parsed as a whole
};

/// A document, or a part of a long one: well-formed UTF-8, lines end with LF.
struct TextChunk {
  std::string text;
  bool starts_document = true;
  bool ends_document = true;
};

/// What has been read so far.
struct TextCounts {
  std::int64_t files = 0;
  std::int64_t bytes = 0;         ///< of the files
  std::int64_t documents = 0;     ///< whole ones that were handed out
  std::int64_t invalid_utf8 = 0;  ///< malformed parts, NULs and lone surrogates, each replaced by U+FFFD
};

/// Reads documents one after another. Blank documents are left out; a byte-order mark is dropped; CR LF
/// becomes LF.
class TextReader {
 public:
  /// Lists the files. Throws MissingInputError for an input that does not exist, DataError for a folder
  /// without files.
  explicit TextReader(const TextOptions& options);
  ~TextReader();
  TextReader(TextReader&&) noexcept;
  TextReader& operator=(TextReader&&) noexcept;

  /// The next chunk; false at the end. Throws IoError, and DataError for a compressed, binary or UTF-16 file
  /// and for a line that is not a JSON object with the text member, with file and line number.
  bool next(TextChunk& chunk);
  const TextCounts& counts() const;
  /// Bytes of all files: an upper bound of the text.
  std::int64_t total_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::data
