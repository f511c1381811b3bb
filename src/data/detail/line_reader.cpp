#include "data/detail/line_reader.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.hpp"
#include "data/utf8.hpp"

namespace athanor::data::detail {

namespace {

constexpr std::size_t block_bytes = 1 << 20;
constexpr std::size_t probe_bytes = 4096;
constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

struct Signature {
  std::string_view bytes;
  std::string_view what;
  std::string_view way_out;
};

constexpr std::array<Signature, 7> refused_signatures = {{
    {"\xFF\xFE", "UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"},
    {"\xFE\xFF", "UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"},
    {"\x1F\x8B", "gzip", "decompress it with gunzip"},
    {"\x28\xB5\x2F\xFD", "zstd", "decompress it with unzstd"},
    {"\xFD"
     "7zXZ",
     "xz", "decompress it with unxz"},
    {"BZh", "bzip2", "decompress it with bunzip2"},
    {"PK\x03\x04", "zip", "unpack it"},
}};

}  // namespace

std::size_t part_end(std::string_view text, std::size_t limit) {
  const std::size_t space = text.substr(0, limit).find_last_of(" \n");
  return space != std::string_view::npos && space >= limit / 2 ? space + 1 : utf8_cut(text, limit);
}

LineReader::LineReader(const std::string& path, std::size_t max_piece_bytes)
    : path_(path),
      file_(path, std::ios::binary),
      max_piece_bytes_(std::max<std::size_t>(max_piece_bytes, 8)) {
  if (!file_) {
    throw base::IoError("{} cannot be opened ({}) check its permissions", path, std::strerror(errno));
  }
  refill();
  check_encoding();
  if (std::string_view(buffer_).starts_with(byte_order_mark)) {
    begin_ = byte_order_mark.size();
  }
}

void LineReader::check_encoding() const {
  for (const Signature& signature : refused_signatures) {
    if (std::string_view(buffer_).starts_with(signature.bytes)) {
      throw base::DataError("{} is not UTF-8 text (it begins like {}) {}", path_, signature.what,
                            signature.way_out);
    }
  }
  if (std::string_view(buffer_).substr(0, probe_bytes).find('\0') != std::string_view::npos) {
    throw base::DataError(
        "{} is not text (its first {} bytes hold a NUL: binary or UTF-16) convert it to UTF-8 or "
        "leave it out",
        path_, probe_bytes);
  }
}

void LineReader::refill() {
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t old_size = buffer_.size();
  buffer_.resize(old_size + block_bytes);
  file_.read(buffer_.data() + old_size, static_cast<std::streamsize>(block_bytes));
  if (file_.bad()) {
    throw base::IoError("{} cannot be read ({}) check the disk", path_, std::strerror(errno));
  }
  buffer_.resize(old_size + static_cast<std::size_t>(file_.gcount()));
  at_end_ = file_.eof();
}

// Like part_end(), but leaves a CR to the next piece, where it may meet its LF.
std::size_t LineReader::cut(std::string_view text) const {
  const std::size_t end = part_end(text, max_piece_bytes_);
  return text[end - 1] == '\r' && end > 1 ? end - 1 : end;
}

bool LineReader::next(LinePiece& piece) {
  std::size_t searched = 0;
  for (;;) {
    const std::string_view text = std::string_view(buffer_).substr(begin_);
    const std::size_t newline = text.find('\n', searched);
    const std::size_t length = std::min(newline, text.size());
    if (newline == std::string_view::npos && length <= max_piece_bytes_ && !at_end_) {
      searched = length;
      refill();
      continue;
    }
    if (text.empty() && !line_open_) {
      return false;
    }
    line_number_ += line_open_ ? 0 : 1;
    if (length > max_piece_bytes_) {
      const std::size_t end = cut(text);
      piece = {text.substr(0, end), false, false};
      begin_ += end;
      line_open_ = true;
      return true;
    }
    const bool has_newline = newline != std::string_view::npos;
    std::string_view line = text.substr(0, length);
    if (has_newline && line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    piece = {line, true, has_newline};
    begin_ += length + (has_newline ? 1 : 0);
    line_open_ = false;
    return true;
  }
}

}  // namespace athanor::data::detail
