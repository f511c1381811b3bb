#include "train/recording_source.hpp"

#include <cstring>
#include <fstream>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/log.hpp"
#include "distill/signal_file/writer.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/signal_fields.hpp"

namespace athanor::train {
namespace {

namespace signal_file = distill::signal_file;
using distill::Box;
using distill::Range;

std::uint64_t draw_id() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

void write_marker(const std::string& path, std::uint64_t id) {
  std::ofstream file(path, std::ios::trunc);
  file << fmt::format("{:016x}\n", id) << std::flush;
  if (!file) {
    throw base::CannotCreateError("{} cannot be written (it names the recording of this run) check run.dir",
                                  path);
  }
}

// The marker's text; "" without one.
std::string read_marker(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  file >> text;
  return text;
}

// Rank 0's part of opening: the folder holds what this run recorded before `first_step`.
signal_file::PreparedRecording prepare(RecordingOptions& options, std::int64_t first_step,
                                       std::int64_t end_step) {
  if (signal_file::has_recording(options.folder)) {
    const std::uint64_t id = signal_file::read_info(options.folder).id;
    if (read_marker(options.marker) != fmt::format("{:016x}", id)) {
      throw base::CannotCreateError(
          "distill.record={} (another run has recorded there) choose another folder, or remove that "
          "recording",
          options.folder);
    }
  } else {
    options.info.id = draw_id();
    write_marker(options.marker, options.info.id);
  }
  signal_file::PreparedRecording prepared =
      signal_file::prepare_recording(options.folder, options.info, first_step, end_step);
  if (prepared.next_step < first_step && first_step < end_step) {
    base::log_warning(
        "{} holds the steps up to {}, and this job goes on with step {}: those between are not recorded",
        options.folder, prepared.next_step, first_step + 1);
  }
  return prepared;
}

class RecordingSource final : public distill::SignalSource {
 public:
  RecordingSource(std::unique_ptr<distill::SignalSource> inner, const RecordingOptions& options,
                  std::shared_ptr<SignalOptions> signals, std::size_t student, int role_rank,
                  const parallel::Communicator& role)
      : inner_(std::move(inner)),
        options_(options),
        signals_(std::move(signals)),
        plan_of_step_(make_plan(signals_, student)),
        layout_(signals_->students[student].layout),
        role_rank_(role_rank),
        role_(role) {
    open();
  }

  const distill::ReceivedStep& wait_step(std::int64_t step, const distill::RowTags& own_rows) override {
    received_ = &inner_->wait_step(step, own_rows);
    tags_ = own_rows;
    return *received_;
  }

  distill::StepOutcome wait_trailer(std::int64_t step) override {
    return outcome_ = inner_->wait_trailer(step);
  }

  void release(std::int64_t step) override {
    inner_->release(step);  // the teacher goes on meanwhile; the fields stay
    write(step);
    const std::int64_t done = step + 1;
    const bool is_cut = options_.index_every > 0 && done % options_.index_every == 0;
    if (done == signals_->total_steps || is_cut || received_->control != distill::ControlWord::go) {
      publish(done == signals_->total_steps);
    }
  }

  void progress() override { inner_->progress(); }
  const distill::SourceStats& stats() const override { return inner_->stats(); }

 private:
  void open();
  void write(std::int64_t step);
  void add_triples(signal_file::StepData& data);
  void publish(bool is_complete);
  std::uint32_t index_of(const std::string& name) const;

  std::unique_ptr<distill::SignalSource> inner_;
  RecordingOptions options_;
  std::shared_ptr<SignalOptions> signals_;
  distill::PlanOfStep plan_of_step_;
  distill::RoleLayout layout_;
  int role_rank_;
  const parallel::Communicator& role_;
  std::optional<signal_file::SignalFileWriter> writer_;
  signal_file::BlockTable indexed_;  // on rank 0: what the last index had
  bool has_kept_head_ = false;       // a frozen teacher's is recorded once
  const distill::ReceivedStep* received_ = nullptr;
  distill::RowTags tags_;
  distill::StepOutcome outcome_ = distill::StepOutcome::pending;
  data::Batch triples_;
};

void RecordingSource::open() {
  options_.info.fields =
      describe_fields(*signals_, plan_of_step_, signals_->first_step, signals_->total_steps);
  std::string text;
  std::string has_head;
  parallel::run_agreed(role_, [&] {
    if (role_rank_ == 0) {
      signal_file::PreparedRecording prepared =
          prepare(options_, signals_->first_step, signals_->total_steps);
      text = signal_file::to_text(prepared.info);
      has_head = prepared.kept_fields.contains(field::head) ? "yes" : "no";
      indexed_ = std::move(prepared.blocks);
    }
  });
  options_.info = signal_file::info_from_text(parallel::broadcast_string(text, 0, role_), options_.folder);
  has_kept_head_ = parallel::broadcast_string(has_head, 0, role_) == "yes";
  parallel::run_agreed(role_, [&] {
    writer_.emplace(options_.folder, options_.info, static_cast<std::uint32_t>(role_rank_),
                    static_cast<std::uint32_t>(role_.size()));
  });
}

std::uint32_t RecordingSource::index_of(const std::string& name) const {
  const int index = options_.info.field_index(name);
  ATHANOR_CHECK(index >= 0, "the recording has no field {}", name);
  return static_cast<std::uint32_t>(index);
}

void RecordingSource::write(std::int64_t step) {
  const std::shared_ptr<const distill::LinkPlan> plan = plan_of_step_(step);
  signal_file::StepData data;
  data.step = step;
  data.teacher_version = received_->teacher_version;
  data.outcome = outcome_;
  data.rows = layout_.rows_of(role_rank_);
  data.step_samples = {tags_.first_sample_id - data.rows.first, layout_.global_batch};
  data.temperatures = settings_of(*signals_, step).temperatures;
  bool has_head = false;
  for (const distill::Field& field : plan->fields()) {
    const bool is_head = field.name == field::head;
    has_head = has_head || is_head;
    if (writes_field(field, role_rank_) && !(is_head && signals_->teacher_frozen && has_kept_head_)) {
      const distill::FieldShare& share = field.receiver[static_cast<std::size_t>(role_rank_)];
      data.parts.push_back(
          {index_of(field.name), share.memory, share.active, received_->field(field.name).bytes.data()});
    }
  }
  add_triples(data);
  writer_->append(data);
  has_kept_head_ = has_kept_head_ || has_head;
}

// Inputs, hard labels and documents, which all tensor-parallel ranks of a replica have alike.
void RecordingSource::add_triples(signal_file::StepData& data) {
  if (layout_.tp_rank_of(role_rank_) != 0) {
    return;
  }
  triples_ = options_.training_text->read_training(tags_.first_sample_id, data.rows.count);
  const auto row_elements = static_cast<std::size_t>(layout_.seq);
  for (std::size_t row = 0; row < tags_.token_hashes.size(); ++row) {
    const std::int32_t* tokens = triples_.tokens.data() + row * row_elements;
    ATHANOR_CHECK(base::hash_bytes(tokens, row_elements * sizeof(*tokens)) == tags_.token_hashes[row],
                  "sample {} has other tokens when it is recorded",
                  tags_.first_sample_id + static_cast<std::int64_t>(row));
  }
  const Box box{{data.rows, Range{0, layout_.seq}, Range{0, 1}}};
  for (const auto& [name, values] :
       {std::pair(field::tokens, &triples_.tokens), std::pair(field::labels, &triples_.labels),
        std::pair(field::documents, &triples_.documents)}) {
    data.parts.push_back({index_of(name), box, box, reinterpret_cast<const std::byte*>(values->data())});
  }
}

// Makes what was written durable and puts it into the index. Collective.
void RecordingSource::publish(bool is_complete) {
  const signal_file::BlockTable own = writer_->take_durable();
  std::string text(sizeof(std::int64_t), '\0');
  const std::int64_t count = own.count();
  std::memcpy(text.data(), &count, sizeof(count));
  text.append(reinterpret_cast<const char*>(own.bytes().data()), own.bytes().size());
  const std::vector<std::string> all = parallel::all_gather_strings(text, role_);
  if (role_rank_ != 0) {
    return;
  }
  for (const std::string& part : all) {
    std::int64_t blocks = 0;
    std::memcpy(&blocks, part.data(), sizeof(blocks));
    indexed_.add_encoded(std::as_bytes(std::span(part).subspan(sizeof(blocks))), blocks);
  }
  signal_file::publish_index(options_.folder, options_.info, indexed_, is_complete);
}

}  // namespace

SignalSourceFactory make_recording_source(SignalSourceFactory inner, RecordingOptions options,
                                          std::shared_ptr<SignalOptions> signals, std::size_t student,
                                          const parallel::Communicator& role) {
  return [inner = std::move(inner), options = std::move(options), signals = std::move(signals), student,
          &role](const SourceStart& start) -> std::unique_ptr<distill::SignalSource> {
    return std::make_unique<RecordingSource>(inner(start), options, signals, student, start.role_rank, role);
  };
}

}  // namespace athanor::train
