#include "data/utf8.hpp"

#include <algorithm>
#include <cstring>

namespace athanor::data {

namespace {

bool is_continuation(unsigned char byte) {
  return (byte & 0xC0) == 0x80;
}

// What the Unicode standard's table 3-7 allows: bytes of a character by its first byte, and the range of the
// second.
struct CharacterShape {
  std::size_t length = 0;
  unsigned char second_low = 0x80;
  unsigned char second_high = 0xBF;
};

CharacterShape shape_of(unsigned char lead) {
  if (lead < 0x80) {
    return {1};
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    return {2};
  }
  if (lead >= 0xE0 && lead <= 0xEF) {
    return {3, static_cast<unsigned char>(lead == 0xE0 ? 0xA0 : 0x80),
            static_cast<unsigned char>(lead == 0xED ? 0x9F : 0xBF)};
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    return {4, static_cast<unsigned char>(lead == 0xF0 ? 0x90 : 0x80),
            static_cast<unsigned char>(lead == 0xF4 ? 0x8F : 0xBF)};
  }
  return {0};
}

// How many bytes of the character that `text` begins with are well-formed, at most its length.
std::size_t well_formed_prefix(std::string_view text, const CharacterShape& shape) {
  if (shape.length == 0) {
    return 0;
  }
  std::size_t good = 1;
  while (good < shape.length && good < text.size()) {
    const auto byte = static_cast<unsigned char>(text[good]);
    const bool fits =
        good == 1 ? byte >= shape.second_low && byte <= shape.second_high : is_continuation(byte);
    if (!fits) {
      break;
    }
    ++good;
  }
  return good;
}

// Bytes of plain ASCII other than NUL at the start of `text`, eight at a time.
std::size_t ascii_run(std::string_view text) {
  std::size_t n = 0;
  for (; n + 8 <= text.size(); n += 8) {
    std::uint64_t word;
    std::memcpy(&word, text.data() + n, 8);
    // Either a high bit, or a zero byte (the subtraction borrows into its high bit).
    if (((word | (word - 0x0101010101010101ull)) & 0x8080808080808080ull) != 0) {
      break;
    }
  }
  while (n < text.size() && static_cast<unsigned char>(text[n]) < 0x80 && text[n] != '\0') {
    ++n;
  }
  return n;
}

}  // namespace

std::size_t utf8_character(std::string_view text) {
  const CharacterShape shape = shape_of(static_cast<unsigned char>(text.front()));
  return shape.length != 0 && well_formed_prefix(text, shape) == shape.length ? shape.length : 0;
}

std::int64_t append_repaired_utf8(std::string_view text, std::string& out) {
  std::int64_t replaced = 0;
  while (!text.empty()) {
    std::size_t good = ascii_run(text);
    while (good < text.size() && text[good] != '\0') {
      const std::size_t length = utf8_character(text.substr(good));
      if (length == 0) {
        break;
      }
      good += length + ascii_run(text.substr(good + length));
    }
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (!text.empty()) {
      const CharacterShape shape = shape_of(static_cast<unsigned char>(text.front()));
      text.remove_prefix(std::max<std::size_t>(1, well_formed_prefix(text, shape)));
      out.append(utf8_replacement);
      ++replaced;
    }
  }
  return replaced;
}

std::size_t utf8_cut(std::string_view text, std::size_t limit) {
  // A character has at most three continuation bytes.
  for (std::size_t back = 0; back <= 3 && back < limit; ++back) {
    if (!is_continuation(static_cast<unsigned char>(text[limit - back]))) {
      return limit - back;
    }
  }
  return limit;
}

}  // namespace athanor::data
