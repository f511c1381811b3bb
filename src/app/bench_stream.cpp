// `athanor bench stream`.
#include "train/bench_stream.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <utility>

#include "app/bench_figures.hpp"
#include "app/commands.hpp"
#include "app/distill_setup.hpp"
#include "app/launch.hpp"
#include "app/role_setup.hpp"
#include "base/error.hpp"
#include "config/distill_plan.hpp"
#include "config/validate.hpp"

namespace athanor::app {
namespace {

// Ranks of the job's largest share on a machine, and the cores they have.
struct Cores {
  int ranks = 0;
  int cores = 0;
  bool are_shared() const { return ranks > cores; }
};

// What the codecs' formulae say of a step's payload to one student, all its ranks together: what is not
// divided over tensor-parallel ranks goes to each, and the head to each replica.
std::int64_t formula_payload_bytes(const config::RunConfig& config, const config::RoleConfig& student,
                                   const parallel::ParallelDims& dims) {
  const config::SignalBytes bytes = config::signal_bytes(config, student);
  const std::int64_t tokens = config.batch.global * config.batch.seq;
  const std::int64_t copies =
      config::make_phases(config).front().codec.kind == distill::PayloadKind::full ? 1 : dims.tp;
  return tokens * (copies * bytes.payload + dims.tp * bytes.loss + bytes.hidden + bytes.attention) +
         dims.dp * bytes.head;
}

train::BenchStreamOptions make_options(const config::RunConfig& config, const parallel::RoleSplit& roles) {
  const auto role = static_cast<std::size_t>(roles.role_index());
  train::BenchStreamOptions options;
  options.warmup_steps = config.bench.warmup_steps;
  options.rounds = config.bench.rounds;
  options.steps_per_round = config.bench.steps_per_round;
  options.trainer.role = make_role_options(config.roles[role]);
  options.trainer.global_batch = config.batch.global;
  options.trainer.seq = config.batch.seq;
  options.trainer.seed = config.run.seed;
  options.signals = make_signal_options(config, roles, {"synthetic"});
  if (role > 0) {
    options.student = make_student_options(config, role);
  }
  for (std::size_t i = 1; i < config.roles.size(); ++i) {
    options.formula_payload_bytes += formula_payload_bytes(
        config, config.roles[i], config::resolve_dims(config.roles[i], roles.roles()[i].ranks));
  }
  return options;
}

// A figure of every round.
train::Spread over_rounds(const train::BenchStreamResult& result,
                          const std::function<double(const train::StreamRound&)>& figure) {
  std::vector<double> values;
  std::transform(result.rounds.begin(), result.rounds.end(), std::back_inserter(values), figure);
  return train::spread_of(std::move(values));
}

struct Figure {
  const char* key;
  const char* name;
  const char* unit;
  double scale;  // of the printed number
  int digits;
  std::function<double(const train::StreamRound&)> of;
};

std::vector<Figure> figures_of(const train::BenchStreamResult& result) {
  using Round = train::StreamRound;
  const auto tokens = static_cast<double>(result.tokens_per_step);
  return {
      {"tokens_per_s", "teacher and students together", "tokens/s", 1, 0,
       [tokens](const Round& round) { return tokens / round.pair_s; }},
      {"teacher_tokens_per_s", "the teacher alone", "tokens/s", 1, 0,
       [tokens](const Round& round) { return tokens / round.teacher_s; }},
      {"student_tokens_per_s", "the students alone, recorded signals", "tokens/s", 1, 0,
       [tokens](const Round& round) { return tokens / round.students_s; }},
      {"ratio", "step together / the slower alone", "", 1, 3,
       [](const Round& round) { return round.ratio(); }},
      {"ratio_to_sum", "step together / sum of both alone", "", 1, 3,
       [](const Round& round) { return round.ratio_to_sum(); }},
      {"cpu_s", "processor time of a step together", "s", 1, 3,
       [](const Round& round) { return round.pair_cpu_s; }},
      {"cpu_alone_s", "processor time of both alone, added", "s", 1, 3,
       [](const Round& round) { return round.alone_cpu_s; }},
      {"student_wait_share", "a student waits for the teacher", "% of its step", 100, 1,
       [](const Round& round) { return round.student_wait; }},
      {"teacher_wait_share", "the teacher waits for credit", "% of its step", 100, 1,
       [](const Round& round) { return round.teacher_wait; }},
  };
}

// With a core for each rank nothing is faster than the slower role; on shared cores both cost their time.
std::vector<BenchFigure> summary_of(const train::BenchStreamResult& result, const Cores& cores) {
  using Round = train::StreamRound;
  const auto tokens = static_cast<double>(result.tokens_per_step);
  const auto limit_s = [&cores](const Round& round) {
    return cores.are_shared() ? round.teacher_s + round.students_s
                              : std::max(round.teacher_s, round.students_s);
  };
  return {{"teacher and students together", "tokens/s",
           over_rounds(result, [&](const Round& round) { return tokens / round.pair_s; }).median,
           cores.are_shared() ? "each alone, added" : "the slower alone",
           over_rounds(result, [&](const Round& round) { return tokens / limit_s(round); }).median,
           over_rounds(result, [&](const Round& round) { return limit_s(round) / round.pair_s; })}};
}

nlohmann::json to_json(const train::StepTimes& times) {
  return {{"forward_s", times.forward_s},     {"backward_s", times.backward_s},
          {"exchange_s", times.exchange_s},   {"reduce_s", times.reduce_s},
          {"optimizer_s", times.optimizer_s}, {"gather_s", times.gather_s},
          {"total_s", times.total_s}};
}

nlohmann::json to_json(const train::BenchStreamResult& result, const Cores& cores) {
  nlohmann::json json = {{"ranks_of_machine", cores.ranks},
                         {"cores_of_machine", cores.cores},
                         {"cores_are_shared", cores.are_shared()},
                         {"tokens_per_step", result.tokens_per_step}};
  json["figures"] = to_json(summary_of(result, cores));
  for (const Figure& figure : figures_of(result)) {
    put_spread(json, figure.key, over_rounds(result, figure.of));
  }
  const train::StreamBytes& bytes = result.bytes;
  json["link_bytes_per_step"] = {{"sent", bytes.sent},
                                 {"received", bytes.received},
                                 {"formula", bytes.formula},
                                 {"packets", bytes.packets},
                                 {"equal", bytes.agree()}};
  put_number(json, "link_bytes_per_token",
             static_cast<double>(bytes.sent) / static_cast<double>(result.tokens_per_step));
  for (const train::StreamRole& role : result.roles) {
    json["roles"][role.name] = {{"ranks", role.ranks},
                                {"peak_rss_bytes", role.peak_rss_bytes},
                                {"times_together", to_json(role.together)},
                                {"times_alone", to_json(role.alone)}};
  }
  json["rounds"] = nlohmann::json::array();
  for (const train::StreamRound& round : result.rounds) {
    nlohmann::json entry;
    for (const Figure& figure : figures_of(result)) {
      put_number(entry, figure.key, figure.of(round));
    }
    json["rounds"].push_back(std::move(entry));
  }
  return json;
}

std::string table_of_rounds(const train::BenchStreamResult& result) {
  constexpr const char* heads[] = {"together", "teacher", "students", "ratio",  "to sum",
                                   "cpu s",    "alone",   "st.waits", "t.waits"};
  std::string text = " round";
  for (const char* head : heads) {
    text += fmt::format(" {:>9}", head);
  }
  for (std::size_t i = 0; i < result.rounds.size(); ++i) {
    text += fmt::format("\n{:>6}", i + 1);
    for (const Figure& figure : figures_of(result)) {
      text += fmt::format(" {:>9.{}f}", figure.scale * figure.of(result.rounds[i]), figure.digits);
    }
  }
  return text + '\n';
}

std::string table_of_times(const train::StreamRole& role) {
  const auto line = [](const char* name, const train::StepTimes& times) {
    return fmt::format(
        "  {:<9} {:.0f} ms: forward {:.0f} (with the link), backward {:.0f}, reduction {:.0f}, optimizer "
        "{:.0f}, "
        "gather {:.0f}\n",
        name, times.total_s * 1e3, times.forward_s * 1e3, times.backward_s * 1e3, times.reduce_s * 1e3,
        times.optimizer_s * 1e3, times.gather_s * 1e3);
  };
  return fmt::format("{}: {} ranks, peak memory of a rank {:.0f} MB\n", role.name, role.ranks,
                     static_cast<double>(role.peak_rss_bytes) / 1e6) +
         line("together", role.together) + line("alone", role.alone);
}

std::string to_text(const train::BenchStreamResult& result, const Cores& cores) {
  std::string text = table_of_rounds(result) + "medians over rounds (smallest to largest)\n";
  for (const Figure& figure : figures_of(result)) {
    const train::Spread spread = over_rounds(result, figure.of);
    const auto number = [&](double value) {
      return fmt::format("{:.{}f}", figure.scale * value, figure.digits);
    };
    text += fmt::format("{:<38} {:>9} {:<13} ({} to {})\n", figure.name, number(spread.median), figure.unit,
                        number(spread.min), number(spread.max));
  }
  for (const train::StreamRole& role : result.roles) {
    text += table_of_times(role);
  }
  const train::StreamBytes& bytes = result.bytes;
  text += fmt::format(
      "link: {} bytes a step sent, {} received, {} by the formula ({} packets, headers included): {}; {:.1f} "
      "bytes "
      "a token\n",
      bytes.sent, bytes.received, bytes.formula, bytes.packets, bytes.agree() ? "equal" : "NOT EQUAL",
      static_cast<double>(bytes.sent) / static_cast<double>(result.tokens_per_step));
  if (cores.are_shared()) {
    text += fmt::format(
        "{} ranks share {} cores: the roles take turns, so ratio and waits say little about overlap (each "
        "alone has all cores; the ratio to the sum, and processor time, say what is lost)\n",
        cores.ranks, cores.cores);
  }
  return text + to_text(summary_of(result, cores));
}

}  // namespace

CommandResult run_bench_stream(const config::RunConfig& config, const parallel::Communicator& world) {
  const parallel::RoleSplit roles = split_roles(config, world);
  const Cores cores{count_local_ranks(world), machine_cores()};
  const train::BenchStreamResult result = train::bench_stream(make_options(config, roles), world, roles);
  return {to_text(result, cores), to_json(result, cores),
          result.bytes.agree() ? base::ExitCode::ok : base::ExitCode::internal};
}

}  // namespace athanor::app
