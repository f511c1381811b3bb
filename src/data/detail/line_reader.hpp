// Lines of a file, long ones in pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

namespace athanor::data::detail {

/// A line or a part of a long one, without its line end (LF or CR LF); valid until the next call of next().
struct LinePiece {
  std::string_view bytes;
  bool ends_line = true;    ///< false: the line goes on in the next piece
  bool has_newline = true;  ///< false for the last line of a file that does not end with one
};

/// Reads a text file in blocks, so memory does not grow with the length of a line. Pieces end between
/// characters.
class LineReader {
 public:
  /// Throws IoError, and DataError for a file that begins like a compressed, UTF-16 or binary one.
  LineReader(const std::string& path, std::size_t max_piece_bytes);

  /// False at the end of the file. Throws IoError.
  bool next(LinePiece& piece);
  const std::string& path() const { return path_; }
  /// 1-based number of the line that the last piece belongs to.
  std::int64_t line_number() const { return line_number_; }

 private:
  void refill();
  void check_encoding() const;
  std::size_t cut(std::string_view text) const;

  std::string path_;
  std::ifstream file_;
  std::size_t max_piece_bytes_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of what is not yet handed out
  bool at_end_ = false;
  bool line_open_ = false;
  std::int64_t line_number_ = 0;
};

/// Where to end a part of at most `limit` bytes of `text`, which is longer: after a space or line end in its
/// second half, otherwise between characters.
std::size_t part_end(std::string_view text, std::size_t limit);

}  // namespace athanor::data::detail
