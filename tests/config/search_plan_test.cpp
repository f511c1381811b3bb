// The trials of a search for the temperature, as configurations.
#include "config/search_plan.hpp"

#include "config/compare.hpp"
#include "config/distill_plan.hpp"
#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::expect_refused;
using tests::parse;

RunConfig search(const std::vector<std::string>& more = {}) {
  std::vector<std::string> words = {"distill",
                                    "--search=temperature",
                                    "--data.train=corpus/a:1:prose",
                                    "--data.valid=corpus/v",
                                    "--model.vocab_size=512",
                                    "--teacher.ranks=1",
                                    "--student.model.layers=2",
                                    "--optim.warmup_steps=0"};
  for (const std::string& option : more) {
    std::erase_if(words, [key = option.substr(0, option.find('=') + 1)](const auto& word) {
      return word.starts_with(key);
    });
    words.push_back(option);
  }
  return parse(words).config;
}

void refused(const std::vector<std::string>& more, const std::vector<std::string>& parts) {
  expect_error([&] { validate(search(more), 2); }, base::ExitCode::usage, parts);
}

TEST(SearchPlan, ShortNamesAreTheKeys) {
  const RunConfig config = search({"--trials=7", "--distill.trial_steps=30"});
  EXPECT_EQ(config.distill.search, SearchKind::temperature);
  EXPECT_EQ(config.distill.trials, 7);
  EXPECT_EQ(config.distill.trial_steps, 30);
  EXPECT_EQ(parse({"distill", "--search", "temperature", "--trials", "3"}).config.distill.trials, 3);
  expect_refused({"distill", "--search=temperature", "--distill.search=none"},
                 {"distill.search", "repeated"});
  expect_refused({"train", "--search=temperature"}, {"train does not use it, only distill"});
  expect_refused({"distill", "--search=alpha"}, {"search=alpha", "temperature"});
}

TEST(SearchPlan, GridGoesFromTheLowestToEightInEqualRatios) {
  EXPECT_EQ(trial_temperatures(search({"--trials=4"})), (std::vector<double>{1.0, 2.0, 4.0, 8.0}));
  EXPECT_EQ(trial_temperatures(search({"--trials=3", "--distill.temperature_min=0.5"})),
            (std::vector<double>{0.5, 2.0, 8.0}));
  const std::vector<double> many = trial_temperatures(search({"--trials=99"}));
  ASSERT_EQ(many.size(), 99u);
  EXPECT_EQ(many.front(), 1.0);
  EXPECT_EQ(many.back(), 8.0);
  for (std::size_t i = 1; i < many.size(); ++i) {
    EXPECT_GT(many[i], many[i - 1]);
  }
}

TEST(SearchPlan, ATrialIsARunOfItsOwn) {
  const RunConfig config =
      search({"--trials=4", "--run.dir=runs/s", "--distill.trial_steps=30", "--train.steps=1000",
              "--checkpoint.dir=elsewhere", "--train.eval_every=5"});
  const RunConfig trial = make_trial(config, 2);
  EXPECT_EQ(trial.run.dir, "runs/s/trials/03");
  EXPECT_EQ(trial.train.steps, 30);
  EXPECT_EQ(trial.train.eval_every, 0);
  EXPECT_EQ(trial.checkpoint.dir, "");
  EXPECT_EQ(trial.distill.search, SearchKind::none);
  EXPECT_EQ(trial.run.seed, config.run.seed);
  EXPECT_NO_THROW(validate(trial, 2));
  for (const distill::Phase& phase : make_phases(trial)) {
    EXPECT_EQ(phase.temperature.at(0), 4.0);
    EXPECT_EQ(phase.temperature.at(29), 4.0);
  }
  EXPECT_TRUE(compare_with_stored(to_ini(make_trial(config, 1)), trial).size() == 1);  // the temperature
}

TEST(SearchPlan, RefusesWhatCannotBeRanked) {
  EXPECT_NO_THROW(validate(search(), 2));
  refused({"--data.valid="}, {"data.valid is empty", "ranked"});
  refused({"--distill.temperature_min=8", "--distill.temperature=9"}, {"distill.temperature_min=8", "lower"});
  refused({"--distill.temperature_by_domain=prose:2"}, {"temperature_by_domain=prose:2"});
  refused({"--distill.loss=logit_mse", "--distill.codec=full"}, {"logit_mse", "does not depend"});
  refused({"--distill.phases=feature_alignment:1"}, {"feature_alignment:1", "teacher's distribution"});
  refused({"--distill.record=runs/r"}, {"distill.record=runs/r", "distill.search"});
  refused({"--distill.source=runs/r", "--teacher.ranks=0"}, {"distill.source=runs/r", "live"});
  refused({"--run.resume=never"}, {"run.resume=never"});
  refused({"--optim.warmup_steps=90", "--train.steps=1000", "--distill.trial_steps=80"},
          {"optim.warmup_steps=90", "distill.trial_steps=80"});
  expect_refused({"distill", "--search=temperature", "--trials=1"}, {"trials=1", "out of range"});
  expect_refused({"distill", "--search=temperature", "--trials=100"}, {"trials=100", "out of range"});
}

}  // namespace
}  // namespace athanor::config
