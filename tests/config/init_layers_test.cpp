// init_mode, init_layers and init_experts of a role.
#include "config/init_layers.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig job(std::vector<std::string> more) {
  std::vector<std::string> words = {"distill",
                                    "--model.vocab_size=512",
                                    "--data.train=x",
                                    "--distill.phases=joint",
                                    "--teacher.model.layers=6",
                                    "--student.model.layers=3"};
  words.insert(words.end(), more.begin(), more.end());
  return parse(std::move(words)).config;
}

TEST(InitKeys, BelongToARole) {
  const RunConfig config = job({"--student.init=x", "--student.init_mode=shrink",
                                "--student.init_layers=0,2,5", "--student.init_experts=merge"});
  EXPECT_EQ(config.roles[0].init_mode, InitMode::exact);
  EXPECT_EQ(config.roles[1].init_mode, InitMode::shrink);
  EXPECT_EQ(config.roles[1].init_experts, distill::ExpertReduction::merge);
  EXPECT_THAT(init_layers(config.roles[1]), testing::ElementsAre(0, 2, 5));
  EXPECT_THAT(init_layers(config.roles[0]), testing::IsEmpty());
  const RunConfig alone = parse({"train", "--init=x", "--init_mode=shrink"}).config;
  EXPECT_EQ(alone.roles[0].init_mode, InitMode::shrink);
}

TEST(InitKeys, RefusesWhatDoesNotGoTogether) {
  const auto refused = [](const std::vector<std::string>& words, const std::vector<std::string>& parts) {
    expect_error([&] { check_init(job(words).roles[1]); }, base::ExitCode::usage, parts);
  };
  const auto layers = [](const std::string& list) {
    return std::vector<std::string>{"--student.init=x", "--student.init_mode=shrink",
                                    "--student.init_layers=" + list};
  };
  EXPECT_NO_THROW(check_init(job(layers("0,1,2")).roles[1]));
  refused({"--student.init_mode=shrink"}, {"init_mode=shrink", "init is empty"});
  refused({"--student.init_layers=0,1,2"}, {"init_layers=0,1,2", "use init_mode=shrink"});
  refused(layers("0,1"), {"init_layers=0,1", "2 layers", "model.layers=3"});
  refused(layers("0,1,2,3"), {"4 layers"});
  refused(layers("0,2,1"), {"layer 1 comes after layer 2"});
  refused(layers("0,1,1"), {"layer 1 comes after layer 1"});
  refused(layers("0,x,2"), {"x is no layer"});
  refused(layers("-1,0,2"), {"-1 is no layer"});
}

TEST(InitKeys, AreCheckedWithTheRest) {
  expect_error(
      [] {
        validate(job({"--student.init_mode=shrink", "--student.ranks=1"}), 2);
      },
      base::ExitCode::usage, {"student: init_mode=shrink"});
}

}  // namespace
}  // namespace athanor::config
