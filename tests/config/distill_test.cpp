// Roles, stages, layer maps and everything else of `athanor distill` that is text before it is work.
#include "config/distill_plan.hpp"

#include "config/compare.hpp"
#include "config/estimate.hpp"
#include "config/parse.hpp"
#include "config/roles.hpp"
#include "config/validate.hpp"

namespace athanor::config {
namespace {

using tests::expect_error;
using tests::expect_refused;
using tests::parse;
using tests::ScratchFolder;

// A job that four ranks can run: a sparse teacher on two, a dense student on two.
RunConfig pair(const std::vector<std::string>& more = {}) {
  std::vector<std::string> words = {"distill",
                                    "--data.train=corpus/a:1:prose,corpus/b:1:code",
                                    "--model.vocab_size=512",
                                    "--batch.global=24",
                                    "--teacher.ranks=2",
                                    "--student.moe.experts=0",
                                    "--student.model.layers=2",
                                    "--train.steps=100"};
  for (const std::string& option : more) {
    std::erase_if(words, [key = option.substr(0, option.find('=') + 1)](const auto& word) {
      return word.starts_with(key);
    });
    words.push_back(option);
  }
  return parse(words).config;
}

void refused(const std::vector<std::string>& more, const std::vector<std::string>& parts,
             int world_size = 4) {
  expect_error([&] { validate(pair(more), world_size); }, base::ExitCode::usage, parts);
}

TEST(DistillRoles, AreTeacherAndStudent) {
  const RunConfig config = pair({"--model.hidden=64", "--teacher.model.layers=6", "--optim.lr=0.1"});
  ASSERT_EQ(config.roles.size(), 2u);
  EXPECT_EQ(config.roles[0].name, "teacher");
  EXPECT_EQ(config.roles[0].kind, parallel::RoleKind::teacher);
  EXPECT_EQ(config.roles[1].name, "student");
  EXPECT_EQ(config.roles[1].kind, parallel::RoleKind::student);
  EXPECT_EQ(config.roles[0].model.layers, 6);
  EXPECT_EQ(config.roles[1].model.layers, 2);
  for (const RoleConfig& role : config.roles) {
    EXPECT_EQ(role.model.hidden, 64);
    EXPECT_EQ(role.optim.lr, 0.1);
  }
  EXPECT_EQ(config.roles[0].model.moe.num_experts, 128);
  EXPECT_EQ(config.roles[1].model.moe.num_experts, 0);
}

TEST(DistillRoles, SeveralStudentsShareAndOverride) {
  const RunConfig config =
      pair({"--student.a.model.layers=3", "--distill.students=a,b", "--student.model.hidden=32",
            "--student.b.parallel.tp=2", "--teacher.init=runs/t", "--teacher.frozen=true"});
  ASSERT_EQ(config.roles.size(), 3u);
  EXPECT_EQ(config.roles[1].name, "student.a");
  EXPECT_EQ(config.roles[2].name, "student.b");
  EXPECT_EQ(config.roles[1].model.layers, 3);  // the closest prefix wins, whatever the order
  EXPECT_EQ(config.roles[2].model.layers, 2);
  EXPECT_EQ(config.roles[1].model.hidden, 32);
  EXPECT_EQ(config.roles[2].model.hidden, 32);
  EXPECT_NE(config.roles[0].model.hidden, 32);
  EXPECT_EQ(config.roles[1].parallel.tp, 1);
  EXPECT_EQ(config.roles[2].parallel.tp, 2);
  EXPECT_TRUE(config.roles[0].frozen);
  EXPECT_EQ(config.roles[0].init, "runs/t");
  EXPECT_FALSE(config.roles[1].frozen);
  const RunConfig spaced = parse({"distill", "--student.b.ranks", "3", "--distill.students", "a,b"}).config;
  EXPECT_EQ(spaced.roles.at(2).ranks, 3);
}

TEST(DistillRoles, FileSectionsNameThem) {
  const ScratchFolder scratch;
  const std::string text =
      "[distill]\nstudents = small,large\n[student.model]\nlayers = 2\n[student.large.model]\nlayers = 3\n"
      "[student.small]\nranks = 1\n[teacher]\nranks = 2\n[model]\nlayers = 5\n";
  const std::string path = scratch.write("run.ini", text);
  const RunConfig config = parse({"distill", "--config=" + path}).config;
  EXPECT_EQ(config.roles.at(0).model.layers, 5);
  EXPECT_EQ(config.roles.at(1).model.layers, 2);
  EXPECT_EQ(config.roles.at(2).model.layers, 3);
  EXPECT_EQ(config.roles.at(1).ranks, 1);
  EXPECT_EQ(resolve_ranks(config, 4), (std::vector<int>{2, 1, 1}));
  // Another command takes the teacher of the same file.
  const RunConfig train = parse({"train", "--config=" + path}).config;
  ASSERT_EQ(train.roles.size(), 1u);
  EXPECT_EQ(train.roles[0].model.layers, 5);
}

TEST(DistillRoles, RefusesNamesAndPrefixesThatMeanNothing) {
  expect_refused({"distill", "--distill.students=a,a"}, {"distill.students=a,a", "twice"});
  expect_refused({"distill", "--distill.students=a b"}, {"distill.students=a b", "letters"});
  expect_refused({"distill", "--distill.students=model"}, {"model", "two meanings"});
  expect_refused({"distill", "--student.a.model.layers=2"}, {"student.a", "only teacher, student"});
  expect_refused({"distill", "--distill.students=a", "--student.b.ranks=2"}, {"student.b", "student.a"});
  expect_refused({"distill", "--student.run.dir=x"}, {"--student.run.dir"});
  expect_refused({"distill", "--student.a.model.layer=2"}, {"did you mean --student.a.model.layers?"});
  expect_refused({"distill", "--student.model.hiden=2"}, {"did you mean --student.model.hidden?"});
  const ScratchFolder scratch;
  expect_refused({"distill", "--config=" + scratch.write("a.ini", "[student.c.model]\nlayers = 2\n")},
                 {"a.ini:2", "student.c"});
}

TEST(DistillRoles, OtherCommandsRefuseTheKeys) {
  expect_refused({"train", "--distill.alpha=0.5"}, {"--distill.alpha=0.5", "only distill"});
  expect_refused({"train", "--student.model.layers=2"}, {"train has no role student", "only teacher"});
  expect_refused({"train", "--teacher.frozen=true"}, {"--teacher.frozen=true", "only distill"});
  expect_refused({"distill", "--generate.top_k=2"}, {"distill does not use it"});
  expect_refused({"distill", "--moe.force_uniform=true"}, {"only bench step"});
}

TEST(DistillRoles, RanksAddUp) {
  EXPECT_EQ(resolve_ranks(pair(), 4), (std::vector<int>{2, 2}));
  EXPECT_EQ(resolve_ranks(pair({"--student.ranks=1"}), 3), (std::vector<int>{2, 1}));
  EXPECT_EQ(resolve_ranks(pair({"--teacher.ranks=0", "--student.ranks=1"}), 8), (std::vector<int>{7, 1}));
  EXPECT_EQ(planned_ranks(pair({"--student.ranks=3"}), 1), 5);
  EXPECT_EQ(planned_ranks(pair(), 1), 1);
  EXPECT_EQ(resolve_ranks(parse({"train"}).config, 5), (std::vector<int>{5}));
  refused({"--student.ranks=3"}, {"teacher.ranks=2", "student.ranks=3", "together 5", "4 ranks"});
  refused({"--student.ranks=1"}, {"together 3", "4 ranks", "start it with 3"});
  refused({"--teacher.ranks=4"}, {"leaves none for student.ranks", "4 ranks", "start it with 5 or more"});
  refused({"--teacher.ranks=0"}, {"teacher.ranks and student.ranks are 0"});
}

TEST(DistillRoles, OneIsReadFromACheckpoint) {
  const RunConfig run =
      pair({"--distill.students=a,b", "--student.b.model.layers=7", "--student.b.precision.compute=bf16"});
  const std::vector<Setting> base = parse_ini(to_ini(run), "config.ini");
  const auto user = [](std::vector<std::string> words) {
    words.insert(words.begin(), {"evaluate", "--checkpoint=x"});
    return parse(words).settings;
  };
  const RunConfig b = resolve_with_base(Command::evaluate, base, user({"--role=student.b"}));
  ASSERT_EQ(b.roles.size(), 1u);
  EXPECT_EQ(b.roles[0].name, "student.b");
  EXPECT_EQ(b.roles[0].model.layers, 7);
  EXPECT_EQ(b.roles[0].model.moe.num_experts, 0);
  EXPECT_EQ(b.roles[0].precision.compute, base::ComputeType::bf16);
  EXPECT_EQ(b.roles[0].ranks, 0);  // the layout is the user's
  const RunConfig teacher = resolve_with_base(Command::generate, base, {});
  EXPECT_EQ(teacher.roles.at(0).name, "teacher");
  EXPECT_EQ(teacher.roles.at(0).model.moe.num_experts, 128);
  const RunConfig laid_out =
      resolve_with_base(Command::evaluate, base,
                        user({"--role=student.a", "--student.a.parallel.tp=2", "--precision.compute=f64"}));
  EXPECT_EQ(laid_out.roles.at(0).parallel.tp, 2);
  EXPECT_EQ(laid_out.roles.at(0).precision.compute, base::ComputeType::f64);
  EXPECT_NO_THROW(
      validate(resolve_with_base(Command::evaluate, base, user({"--role=student.a", "--data.valid=x"})), 1));
  expect_error([&] { resolve_with_base(Command::evaluate, base, user({"--role=student"})); },
               base::ExitCode::usage, {"--role=student", "teacher, student.a, student.b"});
  const std::vector<Setting> of_train = parse_ini(to_ini(parse({"train"}).config), "config.ini");
  expect_error([&] { resolve_with_base(Command::generate, of_train, user({"--role=student"})); },
               base::ExitCode::usage, {"--role=student", "teacher"});
}

TEST(DistillRoles, PrintConfigReadsBackExactly) {
  const ScratchFolder scratch;
  const std::vector<std::vector<std::string>> cases = {
      {},
      {"--distill.students=a,b", "--student.a.model.layers=3", "--student.b.ranks=1", "--student.a.ranks=1",
       "--teacher.frozen=true", "--teacher.init=runs/t # x", "--student.a.optim.lr=0.1"},
      {"--distill.temperature_by_domain=prose:2.5,code:1.5", "--distill.hidden_layers=0:1,1:3:0.5",
       "--distill.codec=hidden", "--distill.loss=jsd", "--distill.beta=0.30000000000000004",
       "--distill.phases=soft_label:0.25,joint:0.75"}};
  for (const std::vector<std::string>& more : cases) {
    const std::string text = to_ini(pair(more));
    const RunConfig again = parse({"distill", "--config=" + scratch.write("printed.ini", text)}).config;
    EXPECT_EQ(to_ini(again), text);
    ASSERT_EQ(again.roles.size(), pair(more).roles.size());
    EXPECT_EQ(again.roles.back().model.layers, pair(more).roles.back().model.layers);
  }
}

TEST(Stages, TheDefaultIsThreeStages) {
  const std::vector<distill::Phase> phases = make_phases(pair({"--distill.attention_layers=1"}));
  ASSERT_EQ(phases.size(), 3u);
  EXPECT_EQ(phases[0].name, "feature_alignment");
  EXPECT_EQ(phases[0].fraction, 0.2);
  EXPECT_FALSE(phases[0].uses_kd());
  EXPECT_DOUBLE_EQ(phases[0].hidden.base, 0.8);
  EXPECT_DOUBLE_EQ(phases[0].attention.base, 0.2);
  EXPECT_TRUE(phases[1].uses_kd());
  EXPECT_FALSE(phases[1].uses_hidden() || phases[1].uses_attention());
  EXPECT_DOUBLE_EQ(phases[2].hidden.base, 0.08);
  EXPECT_DOUBLE_EQ(phases[2].attention.base, 0.02);
}

TEST(Stages, AListOfTheSameIsTheSame) {
  const std::vector<distill::Phase> preset = make_phases(pair());
  const std::vector<distill::Phase> list =
      make_phases(pair({"--distill.phases=feature_alignment:0.2,soft_label:0.5,joint:0.3"}));
  ASSERT_EQ(preset.size(), list.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    EXPECT_EQ(preset[i].name, list[i].name);
    EXPECT_EQ(preset[i].fraction, list[i].fraction);
    EXPECT_EQ(preset[i].hidden.base, list[i].hidden.base);
    EXPECT_EQ(preset[i].ce.base, list[i].ce.base);
    EXPECT_EQ(preset[i].temperature.period_steps, list[i].temperature.period_steps);
  }
}

TEST(Stages, WeightsAndLayersDecideTheTerms) {
  const std::vector<distill::Phase> joint =
      make_phases(pair({"--distill.phases=joint", "--distill.hidden_weight=0.5", "--distill.codec=sampled"}));
  ASSERT_EQ(joint.size(), 1u);
  EXPECT_DOUBLE_EQ(joint[0].hidden.base, 0.5);
  EXPECT_EQ(joint[0].attention.base, 0.0);  // no layers
  EXPECT_TRUE(joint[0].uses_kd());
  EXPECT_EQ(joint[0].codec.kind, distill::PayloadKind::sampled);
  const std::vector<distill::Phase> late = make_phases(pair({"--distill.phases=soft_label:0.5,joint:0.5"}));
  EXPECT_DOUBLE_EQ(late.at(1).hidden.base, 0.8);  // nothing was aligned before
  EXPECT_EQ(make_phases(pair({"--distill.phases=kl_hidden_task"})).at(1).name, "hidden");
}

TEST(Stages, AZeroPeriodSpreadsTheTemperature) {
  const std::vector<distill::Phase> phases = make_phases(pair());  // 9 values from 5 to 1
  EXPECT_EQ(phases[1].temperature.period_steps, 6);                // 50 steps
  EXPECT_EQ(phases[1].temperature.at(0), 5.0);
  EXPECT_EQ(phases[1].temperature.at(49), 1.0);
  EXPECT_EQ(phases[2].temperature.period_steps, 4);  // 30 steps
  EXPECT_EQ(make_phases(pair({"--distill.temperature_period=7"}))[1].temperature.period_steps, 7);
  const distill::TemperatureSchedule constant =
      make_phases(pair({"--distill.temperature_step=0", "--distill.temperature=2"}))[1].temperature;
  EXPECT_EQ(constant.at(49), 2.0);
}

TEST(Stages, RefusesWhatDoesNotSumOrExist) {
  refused({"--distill.phases=soft_label:0.5,joint:0.4"}, {"sum to 0.9"});
  refused({"--distill.phases=soft_label:1.5,joint:-0.5"}, {"fraction of -0.5"});
  refused({"--distill.phases=soft:1"}, {"distill.phases=soft:1", "three_stage", "soft_label"});
  refused({"--distill.phases=joint:x"}, {"joint:x is no stage"});
  refused({"--distill.phases=joint:nan"}, {"joint:nan is no stage"});
  refused({"--distill.phases="}, {"distill.phases is empty"});
  refused({"--distill.hidden_layers=0"}, {"feature_alignment", "distill.hidden_layers=0"});
  refused({"--distill.hidden_weight=0"}, {"feature_alignment", "weight 0"});
}

TEST(LayerMaps, AreCountsOrPairs) {
  const RunConfig two = pair({"--distill.hidden_layers=2"});
  const std::vector<distill::LayerPair> spaced = hidden_pairs(two, two.roles[1]);
  ASSERT_EQ(spaced.size(), 2u);
  EXPECT_EQ(spaced[0].student_layer, 0);
  EXPECT_EQ(spaced[0].teacher_layer, 1);
  EXPECT_EQ(spaced[1].student_layer, 1);
  EXPECT_EQ(spaced[1].teacher_layer, 3);
  const RunConfig listed = pair({"--distill.attention_layers=1:0:3,0:2"});
  const std::vector<distill::LayerPair> pairs = attention_pairs(listed, listed.roles[1]);
  ASSERT_EQ(pairs.size(), 2u);
  EXPECT_EQ(pairs[0].teacher_layer, 0);
  EXPECT_DOUBLE_EQ(pairs[0].weight, 0.75);
  EXPECT_TRUE(attention_pairs(two, two.roles[1]).empty());
}

TEST(LayerMaps, RefusesLayersThatDoNotExist) {
  refused({"--distill.hidden_layers=2:0"}, {"distill.hidden_layers=2:0", "student", "2 layers"});
  refused({"--distill.hidden_layers=0:4"}, {"distill.hidden_layers=0:4", "teacher", "4 layers"});
  refused({"--distill.hidden_layers=3"}, {"distill.hidden_layers=3", "give 1 to 2"});
  refused({"--distill.hidden_layers=-1:0"}, {"distill.hidden_layers=-1:0"});
  refused({"--distill.hidden_layers=1-2"}, {"1-2 is no pair", "student:teacher"});
  refused({"--distill.hidden_layers=1:1,1:1"}, {"twice"});
  refused({"--distill.attention_layers=0:9"}, {"distill.attention_layers=0:9"});
  refused({"--distill.attention_layers=1", "--teacher.model.recompute=true"},
          {"distill.attention_layers=1", "teacher.model.recompute=true"});
  EXPECT_NO_THROW(validate(pair({"--distill.hidden_layers=1", "--model.recompute=true"}), 4));
  // Each student by itself.
  refused({"--distill.students=a,b", "--student.ranks=1", "--student.b.model.layers=1",
           "--distill.hidden_layers=2"},
          {"of the student.b"});
}

TEST(DistillValidate, AcceptsLegalPairs) {
  EXPECT_NO_THROW(validate(pair(), 4));
  EXPECT_NO_THROW(validate(pair({"--student.parallel.tp=2", "--teacher.parallel.ep=2"}), 4));
  EXPECT_NO_THROW(validate(pair({"--teacher.ranks=3", "--student.ranks=2", "--student.batch.micro=4"}), 5));
  for (const char* codec : {"full", "topk", "sampled", "hidden"}) {
    EXPECT_NO_THROW(validate(pair({std::string("--distill.codec=") + codec}), 4)) << codec;
  }
  EXPECT_NO_THROW(validate(pair({"--distill.codec=hidden", "--distill.loss=reverse_kl"}), 4));
  EXPECT_NO_THROW(validate(pair({"--distill.temperature_by_domain=code:1.5"}), 4));
  EXPECT_NO_THROW(validate(pair({"--teacher.frozen=true", "--teacher.init=x"}), 4));
}

TEST(DistillValidate, RefusesPairsThatDoNotFit) {
  refused({"--student.model.vocab_size=256"},
          {"student.model.vocab_size=256", "teacher.model.vocab_size=512"});
  refused({"--student.precision.compute=f64"}, {"student.precision.compute=f64", "all roles or in none"});
  refused({"--precision.compute=f64", "--distill.hidden_wire=bf16"}, {"distill.hidden_wire=bf16", "f64"});
  refused({"--student.frozen=true", "--student.init=x"}, {"student.frozen=true", "only teacher.frozen"});
  refused({"--teacher.frozen=true"}, {"teacher.frozen=true", "teacher.init is empty"});
  refused({"--batch.global=9"}, {"teacher: batch.global=9", "dp=2"});
  refused({"--batch.global=2", "--student.ranks=3"}, {"student: batch.global=2", "dp=3"}, 5);
  refused({"--student.parallel.tp=4"}, {"student: parallel.tp=4", "2 ranks of the student"});
  refused({"--student.parallel.ep=2"}, {"student: parallel.ep=2", "dense"});
  refused({"--data.train="}, {"data.train is empty"});
}

TEST(DistillValidate, RefusesNumbersOutOfRange) {
  refused({"--distill.temperature=0.5"}, {"temperature 0.5", "temperature_min = 1"});
  refused({"--distill.temperature_by_domain=code:0.5"}, {"domain code", "temperature_min"});
  refused({"--distill.temperature_by_domain=math:2"}, {"math", "prose, code"});
  refused({"--distill.temperature_step=0.5"}, {"distill.temperature_step=0.5", "period"});
  refused({"--distill.top_k=513"}, {"top_k = 513", "512"});
  for (const char* loss : {"reverse_kl", "jsd", "skew_kl", "logit_mse"}) {
    refused({std::string("--distill.loss=") + loss}, {loss, "topk", "hidden or full"});
  }
  for (const char* option :
       {"--distill.alpha=1.1", "--distill.alpha_end=-0.1", "--distill.temperature=0", "--distill.window=0",
        "--distill.samples=256", "--distill.skew=1", "--distill.beta=2", "--distill.deadline_s=0",
        "--distill.maturity_margin=0", "--distill.hidden_weight=-1", "--distill.codec=none",
        "--distill.loss=kl", "--distill.hidden_wire=f16", "--distill.temperature_by_domain=code",
        "--distill.temperature_by_domain=a:2,a:3"}) {
    expect_refused({"distill", option}, {std::string(option).substr(2)});
  }
}

TEST(DistillPlan, CountsTheSignalsOfAToken) {
  const RunConfig topk = pair({"--distill.hidden_layers=2", "--distill.hidden_wire=bf16"});
  const SignalBytes bytes = signal_bytes(topk, topk.roles[1]);
  EXPECT_EQ(bytes.payload, 64 * 8 + 4 * 3);
  EXPECT_EQ(bytes.hidden, 2 * 2 * topk.roles[0].model.hidden);
  EXPECT_EQ(bytes.attention, 0);
  EXPECT_EQ(bytes.loss, 4);
  EXPECT_EQ(bytes.head, 0);
  // Two domains with temperatures of their own: two at a step; with one, the schedule's is the other.
  for (const char* domains : {"prose:2,code:1.5", "prose:2"}) {
    const RunConfig by_domain = pair({std::string("--distill.temperature_by_domain=") + domains});
    EXPECT_EQ(signal_bytes(by_domain, by_domain.roles[1]).payload, 64 * 8 + 4 * 5) << domains;
  }
  const RunConfig state = pair({"--distill.codec=hidden"});
  EXPECT_EQ(signal_bytes(state, state.roles[1]).head, 512 * state.roles[0].model.hidden * 4);
  const RunConfig frozen = pair({"--distill.codec=hidden", "--teacher.frozen=true", "--teacher.init=x"});
  EXPECT_EQ(signal_bytes(frozen, frozen.roles[1]).head, 0);
}

TEST(DistillPlan, DescribesBothRoles) {
  const RunConfig config = pair({"--teacher.frozen=true", "--teacher.init=x"});
  const std::vector<int> ranks = resolve_ranks(config, 5);
  const std::string teacher = describe_plan(config, config.roles[0], resolve_dims(config.roles[0], ranks[0]));
  const std::string student = describe_plan(config, config.roles[1], resolve_dims(config.roles[1], ranks[1]));
  for (const char* part : {"teacher: 2 ranks = dp 2", "frozen", "parameters  ", "signals"}) {
    EXPECT_NE(teacher.find(part), std::string::npos) << part << "\n" << teacher;
  }
  for (const char* part : {"student: 3 ranks = dp 3", "bytes a token", "window of 2 steps"}) {
    EXPECT_NE(student.find(part), std::string::npos) << part << "\n" << student;
  }
}

TEST(DistillPlan, TheWindowTakesMemory) {
  const auto link = [](const char* window, std::size_t role) {
    const RunConfig config = pair({std::string("--distill.window=") + window});
    return plan_memory(config, config.roles[role], resolve_dims(config.roles[role], 2)).link;
  };
  EXPECT_EQ(link("4", 0), 2 * link("2", 0));
  EXPECT_EQ(link("5", 1), 2 * link("2", 1));
  EXPECT_GT(link("1", 0), 0);
}

TEST(DistillCompare, SortsWhatMakesAnotherRun) {
  const std::string stored = to_ini(pair());
  EXPECT_TRUE(compare_with_stored(stored, pair()).empty());
  const auto only = [&](const std::vector<std::string>& more) {
    const std::vector<Difference> found = compare_with_stored(stored, pair(more));
    EXPECT_EQ(found.size(), 1u) << more.at(0) << describe(found);
    return found.empty() ? Difference{} : found[0];
  };
  for (const char* option : {"--distill.phases=joint", "--distill.codec=full", "--distill.alpha=0.5",
                             "--distill.loss=jsd", "--student.optim.lr=0.1"}) {
    EXPECT_FALSE(only({option}).matters) << option;
  }
  const Difference layers = only({"--student.model.layers=3"});
  EXPECT_TRUE(layers.matters);
  EXPECT_EQ(layers.key, "student.model.layers");
  // The student's key is not even written when its value is the teacher's.
  const Difference same = only({"--student.model.layers=4"});
  EXPECT_TRUE(same.matters);
  EXPECT_EQ(same.stored, "2");
  EXPECT_EQ(same.current, "4");
  EXPECT_TRUE(only({"--distill.hidden_layers=2"}).matters);
  EXPECT_TRUE(only({"--teacher.frozen=true", "--teacher.init=x"}).matters);
  for (const char* option : {"--distill.window=5", "--distill.deadline_s=1", "--student.ranks=2"}) {
    EXPECT_TRUE(compare_with_stored(stored, pair({option})).empty()) << option;
  }
}

TEST(DistillCompare, OtherStudentsAreAnotherRun) {
  const Difference students = compare_with_stored(to_ini(pair()), pair({"--distill.students=a,b"})).at(0);
  EXPECT_EQ(students.key, "distill.students");
  EXPECT_TRUE(students.matters);
  EXPECT_EQ(students.stored, "student");
  EXPECT_EQ(students.current, "student.a, student.b");
  const RunConfig train = parse({"train", "--model.vocab_size=512", "--train.steps=100",
                                 "--data.train=corpus/a:1:prose,corpus/b:1:code", "--batch.global=24"})
                              .config;
  const std::vector<Difference> from_train = compare_with_stored(to_ini(train), pair());
  ASSERT_EQ(from_train.size(), 1u) << describe(from_train);
  EXPECT_EQ(from_train[0].stored, "none");
}

}  // namespace
}  // namespace athanor::config
