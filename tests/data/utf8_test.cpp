#include "data/utf8.hpp"

#include <string>

#include <gtest/gtest.h>

namespace athanor::data {
namespace {

using namespace std::string_literals;

struct Repaired {
  std::string text;
  std::int64_t count = 0;
};

Repaired repair(const std::string& text) {
  Repaired result;
  result.count = append_repaired_utf8(text, result.text);
  return result;
}

const std::string mark = std::string(utf8_replacement);

TEST(Utf8, KeepsWellFormedText) {
  for (const std::string& text :
       {""s, "plain"s, "a longer plain line of text"s, "\u00e9\u07ff"s, "\u0800\ud7ff\ue000\uffff"s,
        "\U00010000\U0010ffff"s, "mixed \u20ac and \U0001F600 then plain ascii again"s}) {
    EXPECT_EQ(repair(text).text, text);
    EXPECT_EQ(repair(text).count, 0);
  }
}

TEST(Utf8, ReplacesMaximalMalformedParts) {
  const auto expect = [](const std::string& text, const std::string& repaired, std::int64_t count) {
    EXPECT_EQ(repair(text).text, repaired) << text;
    EXPECT_EQ(repair(text).count, count) << text;
  };
  expect("a\x80z", "a" + mark + "z", 1);  // lone continuation
  expect("\xc0\xaf", mark + mark, 2);     // overlong: neither byte begins a character
  expect("\xe2\x82", mark, 1);            // cut off: one part
  expect("\xe2\x82z", mark + "z", 1);
  expect("\xed\xa0\x80", mark + mark + mark, 3);             // surrogate
  expect("\xf4\x90\x80\x80", mark + mark + mark + mark, 4);  // beyond U+10FFFF
  expect("\xf0\x9f\x98", mark, 1);
  expect("\xff\xfe", mark + mark, 2);
  expect("caf\xe9 au lait", "caf" + mark + " au lait", 1);  // Latin-1
  expect("12345678\0 1234567\0"s, "12345678" + mark + " 1234567" + mark, 2);
}

TEST(Utf8, CutsBetweenCharacters) {
  const std::string text = "ab\u20ac\U0001F600z";  // 2 + 3 + 4 + 1 bytes
  EXPECT_EQ(utf8_cut(text, 2), 2u);
  EXPECT_EQ(utf8_cut(text, 3), 2u);
  EXPECT_EQ(utf8_cut(text, 4), 2u);
  EXPECT_EQ(utf8_cut(text, 5), 5u);
  EXPECT_EQ(utf8_cut(text, 8), 5u);
  EXPECT_EQ(utf8_cut(text, 9), 9u);
  EXPECT_EQ(utf8_cut(std::string(10, '\x80'), 7), 7u);  // no UTF-8 at all: anywhere, but forward
}

}  // namespace
}  // namespace athanor::data
