#include "config/ini.hpp"

#include "config/parse.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::ScratchFolder;

TEST(Ini, ReadsSectionsCommentsAndBlanks) {
  const ScratchFolder scratch;
  const std::string path = scratch.write("run.ini",
                                         "# a comment\r\n"
                                         "input = a,b\n"
                                         "\n"
                                         "[model]  ; the shape\n"
                                         "  layers=2\t# two\n"
                                         "hidden = 64\n"
                                         "; another\n"
                                         "[teacher.moe]\n"
                                         "experts =\n");
  const std::vector<Setting> settings = read_ini(path);
  ASSERT_EQ(settings.size(), 4u);
  EXPECT_EQ(settings[0].key, "input");
  EXPECT_EQ(settings[0].value, "a,b");
  EXPECT_EQ(settings[1].key, "model.layers");
  EXPECT_EQ(settings[1].value, "2");
  EXPECT_EQ(settings[1].origin, path + ":5: model.layers=2");
  EXPECT_EQ(settings[2].value, "64");
  EXPECT_EQ(settings[3].key, "teacher.moe.experts");
  EXPECT_EQ(settings[3].value, "");
}

TEST(Ini, ValuesReadBackExactly) {
  const ScratchFolder scratch;
  for (const std::string value :
       {"plain", "", " leading", "trailing ", "a # b", "a;b", "\"quoted\"", "back\\slash", "two\nlines",
        "tab\there", "cr\r", "x=y", "[z]", "a,b:0.5:prose", "\\n"}) {
    const std::string path = scratch.write("v.ini", "[s]\nkey = " + ini_value(value) + "  # note\n");
    const std::vector<Setting> settings = read_ini(path);
    ASSERT_EQ(settings.size(), 1u) << value;
    EXPECT_EQ(settings[0].value, value);
  }
}

TEST(Ini, RefusesWhatIsNotIniWithFileAndLine) {
  const ScratchFolder scratch;
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    const std::string path = scratch.write("bad.ini", text);
    expect_error([&] { read_ini(path); }, base::ExitCode::usage, parts);
  };
  refused("[model]\nlayers 4\n", {"bad.ini:2", "layers 4", "key = value"});
  refused("[model\nlayers=4\n", {"bad.ini:1", "[name]"});
  refused("= 4\n", {"bad.ini:1"});
  refused("a = \"open\n", {"bad.ini:1", "quote"});
  refused("a = \"x\" y\n", {"bad.ini:1", "quote"});
}

TEST(Ini, RefusesARepeatedKeyAlsoOverTwoSections) {
  const ScratchFolder scratch;
  const std::string path =
      scratch.write("twice.ini", "[model]\nlayers=4\n[moe]\ntop_k=2\n[model]\nlayers=5\n");
  expect_error([&] { read_ini(path); }, base::ExitCode::usage,
               {"twice.ini:6", "model.layers", "repeated", "line 2"});
}

TEST(Ini, AMissingFileIsMissingInput) {
  expect_error([] { read_ini("/nowhere/run.ini"); }, base::ExitCode::missing_input,
               {"--config=/nowhere/run.ini"});
  expect_error([] { read_ini("/tmp"); }, base::ExitCode::missing_input, {"--config=/tmp"});
}

}  // namespace
}  // namespace athanor::config
