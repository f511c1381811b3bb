// Token files: the indexed dataset of Megatron-LM, a pair PREFIX.bin (the ids) and PREFIX.idx (where they
// are).
//
// PREFIX.idx, little-endian: "MMIDIDX\0\0", version 1 (uint64), id type (uint8, see TokenType), number of
// sequences S (uint64), number of document entries D (uint64), S sizes (int32, in ids), S positions in
// PREFIX.bin (int64, in bytes), D document entries (int64: the first sequence of each document, then S), and,
// in multimodal files only, S mode bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace athanor::data {

/// How ids are stored; the values are the format's codes.
enum class TokenType : std::uint8_t { uint8 = 1, int8 = 2, int16 = 3, int32 = 4, int64 = 5, uint16 = 8 };

/// Bytes of one id.
std::int64_t token_bytes(TokenType type);
/// The narrowest of uint16 and int32 that holds the ids 0 .. vocab_size-1.
TokenType token_type_for(std::int64_t vocab_size);
/// `path` without a trailing ".bin" or ".idx".
std::string token_file_prefix(const std::string& path);

/// A token file, memory-mapped and read-only; its sequences are one stream of ids in the order of the index.
/// Thread-safe.
class TokenFile {
 public:
  /// Throws MissingInputError, IoError, and DataError for a truncated, foreign or inconsistent pair of files.
  explicit TokenFile(const std::string& prefix);
  ~TokenFile();
  TokenFile(TokenFile&&) noexcept;
  TokenFile& operator=(TokenFile&&) noexcept;

  const std::string& prefix() const;
  TokenType type() const;
  std::int64_t num_tokens() const;
  std::int64_t num_sequences() const;
  std::int64_t num_documents() const;
  /// Stream offset of the first id of a sequence; of num_sequences(): the end of the stream.
  std::int64_t sequence_start(std::int64_t sequence) const;
  /// Stream offset of the first id of a document; of num_documents(): the end of the stream.
  std::int64_t document_start(std::int64_t document) const;
  /// The first document that starts at or after stream offset `token`.
  std::int64_t first_document_from(std::int64_t token) const;
  /// Copies the ids [first, first + out.size()) of the stream. Throws DataError for an id outside int32's
  /// non-negative range.
  void read(std::int64_t first, std::span<std::int32_t> out) const;
  /// Largest id, from a pass over the whole file (-1: no ids at all).
  std::int64_t max_token_id() const;
  /// Hash of the sizes of both files and the bytes of the index.
  std::uint64_t fingerprint() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes a token file. Nothing exists under the final names before finish(); without it the partial files
/// are removed.
class TokenFileWriter {
 public:
  /// Creates the folder when needed. Throws CannotCreateError.
  TokenFileWriter(const std::string& prefix, TokenType type);
  ~TokenFileWriter();
  TokenFileWriter(TokenFileWriter&&) noexcept;
  TokenFileWriter& operator=(TokenFileWriter&&) noexcept;

  /// Appends ids to the current document. Throws DataError for an id that does not fit, IoError when writing
  /// fails.
  void add(std::span<const std::int32_t> ids);
  /// Ends the current document, which may be empty.
  void end_document();
  /// Writes the index, flushes both files to disk and gives them their names. Throws IoError. Call once.
  void finish();

  std::int64_t num_tokens() const;
  std::int64_t num_documents() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::data
