// What is written elsewhere about the configuration agrees with the code.
#include <regex>
#include <set>
#include <sstream>

#include "config/help.hpp"
#include "config/key.hpp"
#include "config/parse.hpp"
#include "infer/generation_options.hpp"

namespace athanor::config {
namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Documentation, IsTheGeneratedText) {
  EXPECT_EQ(read_file(tests::source_folder() / "docs" / "configuration.md"), documentation())
      << "run: athanor --dump-docs > docs/configuration.md";
}

TEST(Documentation, VersionIsTheBuilds) {
  const std::string text = read_file(tests::source_folder() / "CMakeLists.txt");
  std::smatch match;
  ASSERT_TRUE(std::regex_search(text, match, std::regex("project\\(athanor VERSION ([0-9.]+)")));
  EXPECT_EQ(match[1].str(), version);
}

TEST(KeyTable, IsCompleteAndUnique) {
  std::set<std::string> names;
  std::set<std::string> sections;
  for (const Section& section : all_sections()) {
    sections.insert(section.name);
  }
  for (const Key& key : all_keys()) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    EXPECT_EQ(sections.count(key.section()), 1u) << key.name;
    EXPECT_TRUE(key.commands.any()) << key.name;
    EXPECT_TRUE(key.help.ends_with('.')) << key.name;
  }
}

TEST(KeyTable, DefaultsAreLegalAndReadBack) {
  for (const Key& key : all_keys()) {
    RunConfig config;
    const std::string text = key.get(config, config.roles[0]);
    EXPECT_NO_THROW(key.set(config, config.roles[0], text)) << key.name << "=" << text;
    EXPECT_EQ(key.get(config, config.roles[0]), text) << key.name;
  }
}

TEST(KeyTable, GenerationDefaultsAreThoseOfTheGenerator) {
  const GenerateSection config;
  const infer::GenerationOptions options;
  EXPECT_EQ(config.max_new_tokens, options.max_new_tokens);
  EXPECT_EQ(config.min_new_tokens, options.min_new_tokens);
  EXPECT_EQ(config.top_k, options.sampler.top_k);
  EXPECT_EQ(config.top_p, options.sampler.top_p);
  EXPECT_EQ(config.temperature, options.sampler.temperature);
  EXPECT_EQ(config.repetition_penalty, options.sampler.repetition_penalty);
  EXPECT_EQ(config.length_penalty, options.length_penalty);
  EXPECT_EQ(config.beams, options.beams);
  EXPECT_EQ(config.seed, options.sampler.seed);
}

TEST(Help, ListsTheKeysOfTheCommandOnly) {
  const std::string train = command_help(Command::train);
  for (const char* part : {"--model.layers=4", "integer >= 1, layers", "--optim.schedule=cosine",
                           "one of constant, linear, cosine, wsd", "--print-config"}) {
    EXPECT_NE(train.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(train.find("generate.top_k"), std::string::npos);
  EXPECT_NE(command_help(Command::generate).find("--generate.top_k=50"), std::string::npos);
  EXPECT_NE(general_help().find("bench step"), std::string::npos);
  EXPECT_NE(general_help().find("distill"), std::string::npos);
  EXPECT_NE(command_help(Command::distill).find("--distill.alpha=0.9"), std::string::npos);
  EXPECT_EQ(train.find("distill.alpha"), std::string::npos);
}

}  // namespace
}  // namespace athanor::config
