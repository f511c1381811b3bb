#include "train/bench_stream.hpp"

#include <ATen/ATen.h>

#include <time.h>

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "base/memory.hpp"
#include "base/stopwatch.hpp"
#include "distill/link/link_plan.hpp"
#include "parallel/collectives/collectives.hpp"
#include "train/bench_stream/paced_objective.hpp"
#include "train/bench_stream/replay_source.hpp"
#include "train/bench_stream/sleeping_barrier.hpp"
#include "train/teacher_objective.hpp"

namespace athanor::train {
namespace {

constexpr std::array<double StepTimes::*, 7> time_parts = {
    &StepTimes::forward_s, &StepTimes::backward_s,  &StepTimes::exchange_s, &StepTimes::reduce_s,
    &StepTimes::gather_s,  &StepTimes::optimizer_s, &StepTimes::total_s};

// Some steps before and after those that are timed: the window fills, and nobody works beside a role that has
// already ended.
struct Steps {
  std::int64_t lead = 0;
  std::int64_t timed = 0;
  std::int64_t tail = 0;
  std::int64_t all() const { return lead + timed + tail; }
  bool times(std::int64_t step) const { return step >= lead && step < lead + timed; }
};

// Means over the timed steps of one rank, and the bytes of the last step.
struct Timing {
  double step_s = 0.0;
  double cpu_s = 0.0;  // processor time of this rank
  double wait_s = 0.0;
  StepTimes parts{};
  std::int64_t sent_bytes = 0;  // over the link by this rank
  double received_bytes = 0.0;  // by this student
};

// Seconds of processor time that this process has used.
double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// One rank's measurements as numbers, and back.
struct RankReport {
  // Of a step: seconds together, share of the wait, seconds alone, processor time together and alone.
  std::vector<std::array<double, 5>> rounds;
  double peak_rss_bytes = 0.0;
  double sent_bytes = 0.0;
  double received_bytes = 0.0;
  StepTimes together{}, alone{};

  template <typename Visit>
  void visit(const Visit& number) {
    for (std::array<double, 5>& round : rounds) {
      std::for_each(round.begin(), round.end(), number);
    }
    number(peak_rss_bytes);
    number(sent_bytes);
    number(received_bytes);
    for (const auto part : time_parts) {
      number(together.*part);
      number(alone.*part);
    }
  }
};

std::vector<RankReport> gather_reports(RankReport own, const parallel::Communicator& world) {
  std::vector<double> numbers;
  own.visit([&](double& number) { numbers.push_back(number); });
  const at::Tensor row = at::empty({1, static_cast<std::int64_t>(numbers.size())}, at::kDouble);
  std::copy(numbers.begin(), numbers.end(), row.data_ptr<double>());
  const at::Tensor all = parallel::all_gather(row, world, parallel::Traffic::other);
  std::vector<RankReport> reports(static_cast<std::size_t>(world.size()), own);
  const double* next = all.const_data_ptr<double>();
  for (RankReport& report : reports) {
    report.visit([&](double& number) { number = *next++; });
  }
  return reports;
}

class StreamBench {
 public:
  StreamBench(const BenchStreamOptions& options, const parallel::Communicator& world,
              const parallel::RoleSplit& roles)
      : options_(options),
        world_(world),
        roles_(roles),
        pair_steps_{options.signals->window, options.steps_per_round, options.signals->window},
        wire_(world, "signals"),
        barrier_(world) {
    options.signals->total_steps =
        options.warmup_steps + pair_steps_.lead + 1 + options.rounds * pair_steps_.all();
    TrainerOptions trainer = options.trainer;
    trainer.total_steps = options.signals->total_steps;
    trainer_.emplace(trainer, roles.comm(),
                     [this](const model::Transformer& model, parallel::ParameterMap& parameters,
                            const parallel::ProcessGrid& grid) -> std::unique_ptr<Objective> {
                       auto objective = make_objective(model, parameters, grid);
                       objective_ = objective.get();
                       return objective;
                     });
    objective_->start(0, [] {});
  }

  BenchStreamResult run() {
    train_together({options_.warmup_steps + pair_steps_.lead, 0, 0});
    own_.peak_rss_bytes = static_cast<double>(base::peak_resident_bytes());
    record_one_step();
    for (std::int64_t round = 0; round < options_.rounds; ++round) {
      const Timing together = train_together(pair_steps_);
      Timing alone;
      for (const bool is_teachers_turn : {true, false}) {
        if (is_teachers_turn == is_teacher()) {
          alone = train_alone();
        }
        wait_for_others();
      }
      note(together, alone);
    }
    objective_->finish();
    wait_for_others();
    barrier_.finish();
    return make_result();
  }

 private:
  bool is_teacher() const { return roles_.role_index() == 0; }
  void wait_for_others() {
    barrier_.wait([this] { objective_->progress(); });
  }
  std::unique_ptr<PacedObjective> make_objective(const model::Transformer& model,
                                                 parallel::ParameterMap& parameters,
                                                 const parallel::ProcessGrid& grid);
  void record_one_step();
  Timing train_together(const Steps& steps);
  Timing train_alone();
  Timing train(const Steps& steps, bool is_alone, const std::function<std::int64_t(std::int64_t)>& number_of);
  void note(const Timing& together, const Timing& alone);
  StreamBytes count_bytes(const std::vector<RankReport>& reports) const;
  StreamRound make_round(const std::vector<RankReport>& reports, std::size_t round) const;
  BenchStreamResult make_result() const;

  const BenchStreamOptions& options_;
  const parallel::Communicator& world_;
  const parallel::RoleSplit& roles_;
  Steps pair_steps_;
  parallel::PointToPoint wire_;
  SleepingBarrier barrier_;
  std::optional<Trainer> trainer_;
  PacedObjective* objective_ = nullptr;  // the trainer's
  ReplaySource* source_ = nullptr;       // a student's
  std::int64_t link_step_ = 0;           // the next one
  std::int64_t recorded_step_ = 0;
  RankReport own_;
};

std::unique_ptr<PacedObjective> StreamBench::make_objective(const model::Transformer& model,
                                                            parallel::ParameterMap& parameters,
                                                            const parallel::ProcessGrid& grid) {
  if (is_teacher()) {
    return std::make_unique<PacedObjective>(
        std::make_unique<TeacherObjective>(options_.signals, model, grid, wire_),
        std::make_unique<LanguageModelObjective>());
  }
  const SignalSourceFactory live = make_link_source(options_.signals, options_.student->index, wire_);
  const SignalSourceFactory recorded = [this, live](const SourceStart& start) {
    auto source = std::make_unique<ReplaySource>(live(start));
    source_ = source.get();
    return source;
  };
  return std::make_unique<PacedObjective>(
      std::make_unique<StudentObjective>(options_.signals, *options_.student, parameters, grid, recorded),
      nullptr);
}

// Steps whose numbers `number_of` gives; data are made before the clock starts.
Timing StreamBench::train(const Steps& steps, bool is_alone,
                          const std::function<std::int64_t(std::int64_t)>& number_of) {
  std::vector<std::vector<data::Batch>> batches;
  for (std::int64_t i = 0; i < steps.all(); ++i) {
    batches.push_back(synthetic_step(options_.trainer, trainer_->replica(), number_of(i)));
  }
  Timing timing;
  const double weight = 1.0 / static_cast<double>(std::max<std::int64_t>(steps.timed, 1));
  for (std::int64_t i = 0; i < steps.all(); ++i) {
    const base::Stopwatch watch;
    const double cpu_start_s = cpu_seconds();
    objective_->set_next(number_of(i), is_alone);
    const StepMetrics metrics = trainer_->step(batches[static_cast<std::size_t>(i)]);
    const auto figure = [&](const char* name) {
      const auto found = metrics.figures.find(name);
      return found == metrics.figures.end() ? 0.0 : found->second;
    };
    timing.sent_bytes = trainer_->grid().role().traffic().bytes(parallel::Traffic::link);
    timing.received_bytes = figure("link_bytes");
    if (steps.times(i)) {
      timing.step_s += weight * watch.seconds();
      timing.cpu_s += weight * (cpu_seconds() - cpu_start_s);
      timing.wait_s += weight * figure("link_wait_s");
      for (const auto part : time_parts) {
        timing.parts.*part += weight * metrics.times.*part;
      }
    }
  }
  return timing;
}

// All roles, over the link.
Timing StreamBench::train_together(const Steps& steps) {
  if (source_ != nullptr) {
    source_->replay(false);
  }
  wait_for_others();
  const Timing timing = train(steps, false, [this](std::int64_t i) { return link_step_ + i; });
  link_step_ += steps.all();
  wait_for_others();
  return timing;
}

// This role, without the others.
Timing StreamBench::train_alone() {
  if (source_ != nullptr) {
    source_->replay(true);
  }
  return train({1, options_.steps_per_round, 0}, true, [this](std::int64_t) { return recorded_step_; });
}

void StreamBench::record_one_step() {
  recorded_step_ = link_step_;
  if (source_ != nullptr) {
    source_->record_next_step();
  }
  train_together({1, 0, 0});
}

void StreamBench::note(const Timing& together, const Timing& alone) {
  own_.rounds.push_back(
      {together.step_s, together.wait_s / together.step_s, alone.step_s, together.cpu_s, alone.cpu_s});
  own_.sent_bytes = static_cast<double>(together.sent_bytes);
  own_.received_bytes = together.received_bytes;
  const double weight = 1.0 / static_cast<double>(options_.rounds);
  for (const auto part : time_parts) {
    own_.together.*part += weight * together.parts.*part;
    own_.alone.*part += weight * alone.parts.*part;
  }
}

// Of times the slowest rank of a role counts: everyone waits for it.
StreamRound StreamBench::make_round(const std::vector<RankReport>& reports, std::size_t round) const {
  StreamRound result;
  const auto teachers = static_cast<std::size_t>(roles_.roles()[0].ranks);
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    const auto& [pair_s, wait, alone_s, pair_cpu_s, alone_cpu_s] = reports[rank].rounds[round];
    double& role_alone_s = rank < teachers ? result.teacher_s : result.students_s;
    double& role_wait = rank < teachers ? result.teacher_wait : result.student_wait;
    result.pair_s = std::max(result.pair_s, pair_s);
    role_alone_s = std::max(role_alone_s, alone_s);
    role_wait = std::max(role_wait, wait);
    result.pair_cpu_s += pair_cpu_s;
    result.alone_cpu_s += alone_cpu_s;
  }
  return result;
}

StreamBytes StreamBench::count_bytes(const std::vector<RankReport>& reports) const {
  StreamBytes bytes;
  for (int role = 0; role < std::ssize(roles_.roles()); ++role) {
    const auto first = static_cast<std::size_t>(roles_.first_world_rank(role));
    const auto ranks = static_cast<std::size_t>(roles_.roles()[static_cast<std::size_t>(role)].ranks);
    for (std::size_t rank = first; role == 0 && rank < first + ranks; ++rank) {
      bytes.sent += static_cast<std::int64_t>(reports[rank].sent_bytes);
    }
    bytes.received += role > 0 ? static_cast<std::int64_t>(reports[first].received_bytes) : 0;
  }
  for (std::size_t student = 0; student < options_.signals->students.size(); ++student) {
    const std::shared_ptr<const distill::LinkPlan> plan =
        make_plan(options_.signals, student)(options_.signals->total_steps - 1);
    for (int rank = 0; rank < plan->sender().num_ranks(); ++rank) {
      for (const distill::Route& route : plan->routes_from(rank)) {
        bytes.packets += std::ssize(route.pieces);
      }
    }
  }
  bytes.formula = options_.formula_payload_bytes + bytes.packets * distill::packet_header_bytes;
  return bytes;
}

BenchStreamResult StreamBench::make_result() const {
  const std::vector<RankReport> reports = gather_reports(own_, world_);
  BenchStreamResult result;
  result.tokens_per_step = options_.trainer.global_batch * options_.trainer.seq;
  for (std::size_t round = 0; round < own_.rounds.size(); ++round) {
    result.rounds.push_back(make_round(reports, round));
  }
  result.bytes = count_bytes(reports);
  for (int index = 0; index < std::ssize(roles_.roles()); ++index) {
    const parallel::RoleRanks& split = roles_.roles()[static_cast<std::size_t>(index)];
    const auto first = static_cast<std::size_t>(roles_.first_world_rank(index));
    StreamRole role{split.name, split.ranks, 0, reports[first].together, reports[first].alone};
    for (std::size_t rank = first; rank < first + static_cast<std::size_t>(split.ranks); ++rank) {
      role.peak_rss_bytes =
          std::max(role.peak_rss_bytes, static_cast<std::int64_t>(reports[rank].peak_rss_bytes));
    }
    result.roles.push_back(std::move(role));
  }
  return result;
}

}  // namespace

double StreamRound::ratio() const {
  return pair_s / std::max(teacher_s, students_s);
}

BenchStreamResult bench_stream(const BenchStreamOptions& options, const parallel::Communicator& world,
                               const parallel::RoleSplit& roles) {
  return StreamBench(options, world, roles).run();
}

}  // namespace athanor::train
