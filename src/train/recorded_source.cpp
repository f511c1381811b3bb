#include "train/recorded_source.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <tuple>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "distill/signal_file/reader.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/signal_fields.hpp"

namespace athanor::train {
namespace {

namespace signal_file = distill::signal_file;
using distill::Box;
using distill::Range;
using signal_file::FieldInfo;
using signal_file::MappedRecording;
using signal_file::RecordedStep;
using signal_file::StepKind;

// Whether a recording has what the steps of a run need.
class NeedsCheck {
 public:
  NeedsCheck(const MappedRecording& recording, const SignalOptions& options,
             const distill::PlanOfStep& plan_of_step)
      : recording_(recording), options_(options), plan_of_step_(plan_of_step) {}

  /// `samples`: of the step.
  void check(std::int64_t step, const Range& samples) {
    const std::shared_ptr<const distill::LinkPlan> plan = plan_of_step_(step);
    const std::vector<double> temperatures = settings_of(options_, step).temperatures;
    const RecordedStep* only = nullptr;
    for (std::int64_t sample = samples.first; sample < samples.end();) {
      const RecordedStep* recorded = recording_.step_of(sample);
      if (recorded == nullptr) {
        refuse_samples(step, samples, sample);
      }
      if (checked_.insert({plan.get(), recorded->kind, temperatures}).second) {
        check_kind(step, *plan, temperatures, recording_.kinds()[recorded->kind]);
      }
      if (only != nullptr && plan->field_index(field::head) >= 0 && !options_.teacher_frozen) {
        throw base::ConfigError(
            "distill.codec=hidden (step {} takes samples {} to {}, which the recording {} has in several "
            "steps "
            "of a teacher that was training, each with another head) set batch.global to a divisor of the "
            "recording's {}",
            step + 1, samples.first, samples.end() - 1, recording_.folder(), recorded->samples.count);
      }
      only = recorded;
      sample = recorded->samples.end();
    }
  }

 private:
  [[noreturn]] void refuse_samples(std::int64_t step, const Range& samples, std::int64_t missing) const {
    const std::vector<RecordedStep>& steps = recording_.steps();
    throw base::DataError(
        "distill.source={} does not hold sample {} (step {} takes samples {} to {}; it has {}) train fewer "
        "steps, or record more",
        recording_.folder(), missing, step + 1, samples.first, samples.end() - 1,
        steps.empty() ? "none"
                      : fmt::format("those from {} to {}", steps.front().samples.first,
                                    steps.back().samples.end() - 1));
  }

  void check_kind(std::int64_t step, const distill::LinkPlan& plan, const std::vector<double>& temperatures,
                  const StepKind& kind) const {
    for (const distill::Field& field : plan.fields()) {
      check_field(step, describe_field(field, options_, static_cast<std::int64_t>(temperatures.size())),
                  temperatures, kind);
    }
  }

  void check_field(std::int64_t step, const FieldInfo& own, const std::vector<double>& temperatures,
                   const StepKind& kind) const {
    const std::vector<FieldInfo>& fields = recording_.info().fields;
    const int index = recording_.info().field_index(own.name);
    const bool is_kept_head = own.name == field::head && options_.teacher_frozen;
    if (index < 0 || (!is_kept_head && !kind.has_field[static_cast<std::size_t>(index)])) {
      throw base::ConfigError("{} (step {} needs {}, and the recording {} holds no such signal {}) {}",
                              key_of_field(own.name), step + 1, own.name, recording_.folder(),
                              index < 0 ? "at all" : "for its samples",
                              "choose codec, layers and phases that it has, or record again");
    }
    const FieldInfo& stored = fields[static_cast<std::size_t>(index)];
    if (stored != own) {
      throw base::ConfigError(
          "{} (this run takes {} as {} x {} of {}, and the recording {} has {} x {} of {}) set codec, top_k, "
          "samples and hidden_wire as they were when it was made",
          key_of_field(own.name), own.name, own.positions, own.columns, name_of(own.type),
          recording_.folder(), stored.positions, stored.columns, name_of(stored.type));
    }
    for (const double temperature : own.per_temperature ? temperatures : std::vector<double>{}) {
      const std::vector<double>& held = kind.temperatures;
      if (std::find(held.begin(), held.end(), temperature) == held.end()) {
        throw base::ConfigError(
            "distill.temperature (step {} is at {}, and the recording {} holds {} for its samples) use "
            "those, "
            "or record again with distill.record_temperatures",
            step + 1, temperature, recording_.folder(), fmt::join(held, ", "));
      }
    }
  }

  const MappedRecording& recording_;
  const SignalOptions& options_;
  const distill::PlanOfStep& plan_of_step_;
  std::set<std::tuple<const distill::LinkPlan*, std::size_t, std::vector<double>>> checked_;
};

class RecordedSource final : public distill::SignalSource {
 public:
  RecordedSource(ReplayOptions options, std::shared_ptr<SignalOptions> signals, std::size_t student,
                 const SourceStart& start, const parallel::Communicator& role)
      : options_(std::move(options)),
        signals_(std::move(signals)),
        plan_of_step_(make_plan(signals_, student)),
        layout_(signals_->students[student].layout),
        start_(start),
        role_(role) {}

  const distill::ReceivedStep& wait_step(std::int64_t step, const distill::RowTags& own_rows) override;
  distill::StepOutcome wait_trailer(std::int64_t) override { return outcome_; }
  void release(std::int64_t step) override;
  void progress() override {}
  const distill::SourceStats& stats() const override { return stats_; }

 private:
  const MappedRecording& recording() const { return *options_.recording; }
  void check_all(std::int64_t step, std::int64_t first_sample);
  void prepare_fields(std::int64_t step);
  void read(const distill::RowTags& own_rows, const Range& step_samples, std::int64_t step);
  void read_head(const signal_file::FieldTarget& target, const RecordedStep& recorded);
  void check_tokens(const std::vector<std::int32_t>& tokens, const distill::RowTags& own_rows,
                    std::int64_t step) const;

  ReplayOptions options_;
  std::shared_ptr<SignalOptions> signals_;
  distill::PlanOfStep plan_of_step_;
  distill::RoleLayout layout_;
  SourceStart start_;
  const parallel::Communicator& role_;
  bool is_checked_ = false;
  std::shared_ptr<const distill::LinkPlan> plan_;  // of the buffers below
  std::vector<std::vector<std::byte>> fields_;
  distill::ReceivedStep received_;
  distill::StepOutcome outcome_ = distill::StepOutcome::finite;
  Range step_samples_;
  distill::SourceStats stats_;
};

const distill::ReceivedStep& RecordedSource::wait_step(std::int64_t step, const distill::RowTags& own_rows) {
  const distill::ControlWord word = options_.word(step, start_);
  const Range rows = layout_.rows_of(start_.role_rank);
  ATHANOR_CHECK(std::ssize(own_rows.token_hashes) == rows.count, "tags of {} rows for the {} of this rank",
                own_rows.token_hashes.size(), rows.count);
  step_samples_ = {own_rows.first_sample_id - rows.first, layout_.global_batch};
  base::fault_point("replay.wait_step", start_.role_rank);
  if (!is_checked_) {
    check_all(step, step_samples_.first);
    is_checked_ = true;
  }
  const base::Stopwatch watch;
  prepare_fields(step);
  received_.control = word;
  read(own_rows, step_samples_, step);
  stats_.last_step_wait_s = watch.seconds();
  stats_.wait_s += stats_.last_step_wait_s;
  return received_;
}

// Everything that this job will ask for, before it begins.
void RecordedSource::check_all(std::int64_t step, std::int64_t first_sample) {
  const base::Stopwatch watch;
  const std::int64_t steps = signals_->total_steps - step;
  std::int64_t bytes = 0;
  parallel::run_agreed(role_, [&] {
    NeedsCheck needs(recording(), *signals_, plan_of_step_);
    for (std::int64_t ahead = 0; ahead < steps; ++ahead) {
      needs.check(step + ahead, {first_sample + ahead * layout_.global_batch, layout_.global_batch});
    }
    bytes = signal_file::verify_samples(recording(), {first_sample, steps * layout_.global_batch},
                                        role_.rank(), role_.size());
  });
  bytes = parallel::all_reduce_sum(bytes, role_);
  base::log_info("{}: {:.1f} MB of signals for {} steps are there and match their checksums ({:.2f} s)",
                 recording().folder(), static_cast<double>(bytes) / 1e6, steps, watch.seconds());
}

// Buffers of the step's fields; zero where nothing is read, which stays so while the plan does.
void RecordedSource::prepare_fields(std::int64_t step) {
  const std::shared_ptr<const distill::LinkPlan> plan = plan_of_step_(step);
  const auto share_of = [&](const distill::Field& field) -> const distill::FieldShare& {
    return field.receiver[static_cast<std::size_t>(start_.role_rank)];
  };
  received_ = {};
  received_.step = step;
  if (plan_ != plan) {
    plan_ = plan;
    fields_.clear();
    for (const distill::Field& field : plan->fields()) {
      const std::int64_t size = share_of(field).memory.numel() * field.element_bytes;
      fields_.emplace_back(static_cast<std::size_t>(size), std::byte{0});
    }
  }
  for (std::size_t i = 0; i < fields_.size(); ++i) {
    const distill::Field& field = plan->fields()[i];
    const auto& [rows, positions, columns] = share_of(field).memory.dims;
    received_.fields.push_back(
        {field.name, {rows.count, positions.count, columns.count}, field.element_bytes, fields_[i]});
  }
}

void RecordedSource::read(const distill::RowTags& own_rows, const Range& step_samples, std::int64_t step) {
  std::vector<signal_file::FieldTarget> targets;
  const Range own{own_rows.first_sample_id, std::ssize(own_rows.token_hashes)};
  const auto index_of = [&](const std::string& name) {
    const int index = recording().info().field_index(name);
    ATHANOR_CHECK(index >= 0, "the recording has no field {}", name);
    return static_cast<std::uint32_t>(index);
  };
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(own.count * layout_.seq));
  const Box token_box{{own, Range{0, layout_.seq}, Range{0, 1}}};
  targets.push_back(
      {index_of(field::tokens), token_box, token_box, reinterpret_cast<std::byte*>(tokens.data())});
  const RecordedStep& first = *recording().step_of(step_samples.first);
  for (std::size_t i = 0; i < fields_.size(); ++i) {
    const distill::Field& field = plan_->fields()[i];
    const distill::FieldShare& share = field.receiver[static_cast<std::size_t>(start_.role_rank)];
    signal_file::FieldTarget target{index_of(field.name), share.memory, share.active, fields_[i].data()};
    if (field.cadence == distill::Cadence::step) {
      read_head(target, first);
    } else {
      target.memory = share.memory.with_rows(own);
      target.active = share.active.with_rows(own);
      targets.push_back(target);
    }
  }
  signal_file::read_samples(recording(), own, settings_of(*signals_, step).temperatures, targets);
  check_tokens(tokens, own_rows, step);
  outcome_ = distill::StepOutcome::finite;
  for (std::int64_t sample = step_samples.first; sample < step_samples.end();) {
    const RecordedStep& recorded = *recording().step_of(sample);
    outcome_ = recorded.outcome == distill::StepOutcome::skipped ? recorded.outcome : outcome_;
    received_.teacher_version = recorded.teacher_version;
    sample = recorded.samples.end();
  }
}

// A frozen teacher's head is recorded once.
void RecordedSource::read_head(const signal_file::FieldTarget& target, const RecordedStep& recorded) {
  const auto holds = [&](const RecordedStep& step) {
    return static_cast<bool>(recording().kinds()[step.kind].has_field[target.field]);
  };
  if (holds(recorded)) {
    signal_file::read_step_field(recording(), recorded, target);
    return;
  }
  const auto& steps = recording().steps();
  const auto found = std::find_if(steps.begin(), steps.end(), holds);
  if (found == steps.end()) {
    throw base::DataError(
        "distill.source={} does not hold the teacher's head (its step is missing) record again",
        recording().folder());
  }
  signal_file::read_step_field(recording(), *found, target);
}

void RecordedSource::check_tokens(const std::vector<std::int32_t>& tokens, const distill::RowTags& own_rows,
                                  std::int64_t step) const {
  const auto row_elements = static_cast<std::size_t>(layout_.seq);
  for (std::size_t row = 0; row < own_rows.token_hashes.size(); ++row) {
    if (base::hash_bytes(tokens.data() + row * row_elements, row_elements * sizeof(tokens[0])) !=
        own_rows.token_hashes[row]) {
      throw base::DataError(
          "distill.source={} was recorded from other tokens (sample {}, step {}) give the data.train, "
          "run.seed "
          "and batch.seq that it was made with",
          recording().folder(), own_rows.first_sample_id + static_cast<std::int64_t>(row), step + 1);
    }
  }
}

void RecordedSource::release(std::int64_t) {
  ++stats_.steps;
  if (const RecordedStep* next = recording().step_of(step_samples_.end())) {
    recording().prefetch(*next);
  }
}

// A word as it travels.
struct Letter {
  std::int64_t step = 0;
  std::int64_t word = 0;
};
constexpr int word_tag = 1;

parallel::ByteBuffer write_letter(const Letter& letter) {
  parallel::ByteBuffer bytes(sizeof(Letter));
  std::memcpy(bytes.data(), &letter, sizeof(Letter));
  return bytes;
}

}  // namespace

SignalSourceFactory make_recorded_source(ReplayOptions options, std::shared_ptr<SignalOptions> signals,
                                         std::size_t student, const parallel::Communicator& role) {
  return [options = std::move(options), signals = std::move(signals), student,
          &role](const SourceStart& start) -> std::unique_ptr<distill::SignalSource> {
    return std::make_unique<RecordedSource>(options, signals, student, start, role);
  };
}

distill::RoleLayout absent_teacher(std::int64_t global_batch, std::int64_t seq) {
  return {"teacher", {0}, 1, 1, global_batch, global_batch, seq};
}

void LeadingStudent::begin_step(const ObjectiveStep& step) {
  *word_ = step.stop_requests > 0   ? distill::ControlWord::cut_and_stop
           : step.save_requests > 0 ? distill::ControlWord::cut
                                    : distill::ControlWord::go;
  StudentObjective::begin_step(step);
}

WordOfStep leading_words(std::shared_ptr<const distill::ControlWord> word,
                         std::vector<int> other_students_world_ranks, parallel::PointToPoint& wire) {
  auto letters = std::make_shared<std::vector<parallel::PointToPoint::Ticket>>();
  return [word = std::move(word), others = std::move(other_students_world_ranks), letters, &wire](
             std::int64_t step, const SourceStart& start) {
    for (const int rank : start.role_rank == 0 ? others : std::vector<int>{}) {
      letters->push_back(wire.send(rank, word_tag, write_letter({step, static_cast<std::int64_t>(*word)})));
    }
    wire.progress();
    std::erase_if(*letters, [&](const auto ticket) {
      const bool is_done = wire.is_done(ticket);
      if (is_done) {
        wire.take(ticket);
      }
      return is_done;
    });
    return *word;
  };
}

WordOfStep following_words(int leading_world_rank, double deadline_s, parallel::PointToPoint& wire) {
  return [leading_world_rank, deadline_s, &wire](std::int64_t step, const SourceStart& start) {
    const auto ticket = wire.receive(leading_world_rank, word_tag, parallel::ByteBuffer(sizeof(Letter)));
    const bool arrived = wire.wait_until(
        [&] {
          if (start.while_waiting) {
            start.while_waiting();
          }
          return wire.is_done(ticket);
        },
        deadline_s);
    if (!arrived) {
      throw distill::LinkTimeout(
          "rank {} heard nothing from rank {} of the first student before step {} within {} s (it is dead, "
          "stuck or much slower) look at its log, or raise distill.deadline_s",
          wire.rank(), leading_world_rank, step + 1, deadline_s);
    }
    const parallel::ByteBuffer bytes = wire.take(ticket);
    Letter letter;
    ATHANOR_CHECK(bytes.size() == sizeof(letter), "a word of {} bytes came", bytes.size());
    std::memcpy(&letter, bytes.data(), sizeof(letter));
    if (letter.step != step) {
      throw base::CommError(
          "rank {} heard of step {} when step {} begins (the students have lost step) resume "
          "from the last checkpoint",
          wire.rank(), letter.step + 1, step + 1);
    }
    return static_cast<distill::ControlWord>(letter.word);
  };
}

}  // namespace athanor::train
