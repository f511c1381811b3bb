#include "data/text_reader.hpp"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/error.hpp"
#include "data/detail/json_text.hpp"
#include "data/detail/line_reader.hpp"
#include "data/utf8.hpp"

namespace athanor::data {

namespace {

namespace fs = std::filesystem;

bool is_json_lines(const std::string& path) {
  constexpr std::array<std::string_view, 3> extensions = {".jsonl", ".ndjson", ".json"};
  return std::find(extensions.begin(), extensions.end(), fs::path(path).extension().string()) !=
         extensions.end();
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos;
}

// Files below a folder, sorted, without hidden files and folders.
std::vector<std::string> files_below(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  auto at = fs::recursive_directory_iterator(folder, fs::directory_options::follow_directory_symlink, error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    if (at->path().filename().string().starts_with('.')) {
      at.disable_recursion_pending();
    } else if (at->is_regular_file()) {
      files.push_back(at->path().string());
    }
  }
  if (error) {
    throw base::IoError("the folder {} cannot be listed ({}) check its permissions", folder, error.message());
  }
  if (files.empty()) {
    throw base::DataError(
        "the folder {} holds no files (text or JSON lines are read) give a folder with text", folder);
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> list_files(const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    if (!fs::exists(input)) {
      throw base::MissingInputError(
          "the input {} does not exist (text or JSON lines are read from it) check the path", input);
    }
    if (fs::is_directory(input)) {
      const std::vector<std::string> found = files_below(input);
      files.insert(files.end(), found.begin(), found.end());
    } else {
      files.push_back(input);
    }
  }
  return files;
}

}  // namespace

struct TextReader::State {
  TextOptions options;
  std::vector<std::string> files;
  std::int64_t total_bytes = 0;
  std::size_t next_file = 0;
  std::optional<detail::LineReader> lines;
  bool json = false;
  TextCounts counts;

  // Of plain text: the part of the document that is being collected.
  std::string text;
  bool in_document = false;   // a part of it was handed out already
  bool owes_newline = false;  // between the last line and the next
  // Of JSON lines: the document being handed out, and how much of it is.
  std::string document;
  std::size_t document_done = 0;

  bool open_next_file();
  bool next_plain(TextChunk& chunk);
  bool next_json(TextChunk& chunk);
  bool read_json_document();
  bool collect_line(const detail::LinePiece& piece, TextChunk& chunk);
  bool hand_out(TextChunk& chunk, bool ends_document);
};

bool TextReader::State::open_next_file() {
  if (next_file == files.size()) {
    return false;
  }
  const std::string& path = files[next_file++];
  lines.emplace(path, static_cast<std::size_t>(options.max_chunk_bytes));
  json = is_json_lines(path);
  counts.files += 1;
  counts.bytes += static_cast<std::int64_t>(fs::file_size(path));
  return true;
}

// Moves the collected text out; false when it was a blank document, which is dropped.
bool TextReader::State::hand_out(TextChunk& chunk, bool ends_document) {
  if (ends_document && !in_document && is_blank(text)) {
    text.clear();
    owes_newline = false;
    return false;
  }
  chunk.text = std::exchange(text, {});
  chunk.starts_document = !in_document;
  chunk.ends_document = ends_document;
  in_document = !ends_document;
  owes_newline = owes_newline && !ends_document;
  counts.documents += ends_document ? 1 : 0;
  return true;
}

// Adds a piece of a line to the document; true when a chunk came out.
bool TextReader::State::collect_line(const detail::LinePiece& piece, TextChunk& chunk) {
  // The empty tail of a long line is no blank line.
  const bool at_line_start = owes_newline || (text.empty() && !in_document);
  if (options.split == DocumentSplit::blank_lines && at_line_start && piece.ends_line &&
      is_blank(piece.bytes)) {
    return hand_out(chunk, true);
  }
  if (owes_newline) {
    text += '\n';
  }
  counts.invalid_utf8 += append_repaired_utf8(piece.bytes, text);
  owes_newline = piece.ends_line && (piece.has_newline || options.split == DocumentSplit::blank_lines);
  return static_cast<std::int64_t>(text.size()) >= options.max_chunk_bytes && hand_out(chunk, false);
}

bool TextReader::State::next_plain(TextChunk& chunk) {
  detail::LinePiece piece;
  while (lines->next(piece)) {
    if (collect_line(piece, chunk)) {
      return true;
    }
  }
  lines.reset();
  if (owes_newline && options.split == DocumentSplit::files) {
    text += '\n';
  }
  owes_newline = false;
  return hand_out(chunk, true);
}

// Reads lines up to the next document that is not blank; false at the end of the file.
bool TextReader::State::read_json_document() {
  detail::LinePiece piece;
  std::string line;
  while (lines->next(piece)) {
    counts.invalid_utf8 += append_repaired_utf8(piece.bytes, line);
    const auto where = [&] { return fmt::format("{} line {}", lines->path(), lines->line_number()); };
    if (static_cast<std::int64_t>(line.size()) > options.max_json_line_bytes) {
      throw base::DataError(
          "{} is longer than {} bytes (a JSON line is parsed as a whole) split the document, or give "
          "it as plain text",
          where(), options.max_json_line_bytes);
    }
    if (!piece.ends_line) {
      continue;
    }
    if (!is_blank(line)) {
      // A parsed string may hold NUL through \u0000.
      const std::string text = detail::json_text(line, options.json_field, where(), counts.invalid_utf8);
      counts.invalid_utf8 += append_repaired_utf8(text, document);
      if (!is_blank(document)) {
        return true;
      }
      document.clear();
    }
    line.clear();
  }
  return false;
}

bool TextReader::State::next_json(TextChunk& chunk) {
  if (document.empty() && !read_json_document()) {
    lines.reset();
    return false;
  }
  const std::string_view rest = std::string_view(document).substr(document_done);
  const auto limit = static_cast<std::size_t>(options.max_chunk_bytes);
  const std::size_t length = rest.size() <= limit ? rest.size() : detail::part_end(rest, limit);
  chunk.text = rest.substr(0, length);
  chunk.starts_document = document_done == 0;
  chunk.ends_document = length == rest.size();
  document_done += length;
  if (chunk.ends_document) {
    document.clear();
    document_done = 0;
    ++counts.documents;
  }
  return true;
}

TextReader::TextReader(const TextOptions& options) : state_(std::make_unique<State>()) {
  ATHANOR_CHECK(options.max_chunk_bytes >= 16, "chunks of {} bytes", options.max_chunk_bytes);
  state_->options = options;
  state_->files = list_files(options.inputs);
  for (const std::string& file : state_->files) {
    std::error_code error;
    const auto size = fs::file_size(file, error);
    if (error) {
      throw base::DataError("{} is not a regular file ({}) save the text to a file first", file,
                            error.message());
    }
    state_->total_bytes += static_cast<std::int64_t>(size);
  }
}

TextReader::~TextReader() = default;
TextReader::TextReader(TextReader&&) noexcept = default;
TextReader& TextReader::operator=(TextReader&&) noexcept = default;

bool TextReader::next(TextChunk& chunk) {
  while (state_->lines || state_->open_next_file()) {
    if (state_->json ? state_->next_json(chunk) : state_->next_plain(chunk)) {
      return true;
    }
  }
  return false;
}

const TextCounts& TextReader::counts() const {
  return state_->counts;
}
std::int64_t TextReader::total_bytes() const {
  return state_->total_bytes;
}

}  // namespace athanor::data
