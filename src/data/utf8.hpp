// Checking and repairing UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace athanor::data {

/// U+FFFD, which stands for what could not be read.
inline constexpr std::string_view utf8_replacement = "\xEF\xBF\xBD";

/// Bytes of the well-formed character (no surrogates, no overlong forms, at most U+10FFFF) that `text` begins
/// with; 0 when it is malformed or cut off. `text` is not empty.
std::size_t utf8_character(std::string_view text);
/// Appends `text` to `out` with every maximal malformed part (as the Unicode standard recommends) and every
/// NUL replaced by U+FFFD. Returns how many were replaced.
std::int64_t append_repaired_utf8(std::string_view text, std::string& out);
/// The largest position <= `limit` (< text.size()) that does not lie inside a character; `limit` itself when
/// the bytes there are no UTF-8.
std::size_t utf8_cut(std::string_view text, std::size_t limit);

}  // namespace athanor::data
