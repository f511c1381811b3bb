// Stages with values of their own.
#include "config/phase_settings.hpp"

#include "config/distill_plan.hpp"
#include "config/parse.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::parse;

RunConfig two_stages(const std::string& settings, const std::string& phases = "soft_label:0.5,joint:0.5") {
  return parse({"distill", "--data.train=corpus/a:1:prose", "--model.vocab_size=512", "--batch.global=24",
                "--teacher.ranks=2", "--student.moe.experts=0", "--train.steps=100",
                "--distill.hidden_layers=1", "--distill.phases=" + phases,
                "--distill.phase_settings=" + settings})
      .config;
}

void refused(const std::string& settings, const std::vector<std::string>& parts) {
  expect_error([&] { validate(two_stages(settings), 4); }, base::ExitCode::usage, parts);
}

TEST(PhaseSettings, ChangeTheirStageAlone) {
  const RunConfig config = two_stages(
      "soft_label.temperature=2,soft_label.temperature_step=0,joint.codec=hidden,joint.loss=reverse_kl,"
      "joint.hidden_loss=cosine,joint.hidden_weight=0.25,joint.alpha_end=0.125");
  validate(config, 4);
  const std::vector<distill::Phase> phases = make_phases(config);
  ASSERT_EQ(phases.size(), 2u);
  EXPECT_EQ(phases[0].temperature.first, 2.0);
  EXPECT_EQ(phases[0].temperature.step_change, 0.0);
  EXPECT_EQ(phases[0].codec.kind, distill::PayloadKind::topk);
  EXPECT_EQ(phases[0].kd_loss.loss, distill::KdLoss::forward_kl);
  EXPECT_EQ(phases[1].temperature.first, config.distill.temperature.first);
  EXPECT_GT(phases[1].temperature.period_steps, 0);
  EXPECT_EQ(phases[1].codec.kind, distill::PayloadKind::hidden);
  EXPECT_EQ(phases[1].kd_loss.loss, distill::KdLoss::reverse_kl);
  EXPECT_EQ(phases[1].hidden_loss, distill::HiddenLossKind::cosine);
  EXPECT_DOUBLE_EQ(phases[1].hidden.base, 0.25);
  EXPECT_EQ(phases[1].alpha.last, 0.125);
  EXPECT_EQ(config.distill.codec.kind, distill::PayloadKind::topk);
}

TEST(PhaseSettings, TheLinkHasRoomForTheLargestStage) {
  const auto bytes = [](const std::string& settings) {
    const RunConfig config = two_stages(settings);
    return signal_bytes(config, config.roles[1]);
  };
  const SignalBytes plain = bytes("");
  const SignalBytes mixed = bytes("soft_label.codec=full,joint.codec=hidden");
  EXPECT_EQ(plain.head, 0);
  EXPECT_EQ(mixed.payload, 512 * 4);
  EXPECT_GT(mixed.payload, plain.payload);
  EXPECT_GT(mixed.head, 0);
}

TEST(PhaseSettings, AreRefusedWithTheReason) {
  refused("soft_label", {"distill.phase_settings", "stage.key=value"});
  refused("temperature=2", {"distill.phase_settings", "stage.key=value"});
  refused("hard_label.temperature=2", {"hard_label", "soft_label, joint"});
  refused("joint.window=2", {"window", "does not belong to a stage"});
  refused("joint.codec=best", {"joint.codec=best", "hidden"});
  refused("joint.alpha=2", {"joint.alpha=2"});
  refused("joint.loss=reverse_kl", {"reverse_kl"});  // topk does not determine it
  refused("joint.alpha=0.5,joint.alpha=0.25", {"joint.alpha", "twice"});
  expect_error([] { validate(two_stages("kl.temperature=2"), 4); }, base::ExitCode::usage, {"kl"});
}

TEST(PhaseSettings, ATemperatureSearchSetsTheTemperatureItself) {
  RunConfig config = two_stages("joint.temperature=2");
  config.distill.search = SearchKind::temperature;
  config.data.valid = "corpus/a";
  expect_error([&] { validate(config, 4); }, base::ExitCode::usage, {"distill.search", "phase_settings"});
}

}  // namespace
}  // namespace athanor::config
