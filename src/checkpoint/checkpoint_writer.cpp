#include "checkpoint/checkpoint_writer.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <iterator>
#include <map>
#include <new>
#include <random>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/memory.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/lock_holder.hpp"
#include "checkpoint/detail/save_letters.hpp"
#include "checkpoint/detail/save_tasks.hpp"
#include "checkpoint/detail/snapshot_buffer.hpp"
#include "checkpoint/io_thread.hpp"
#include "checkpoint/shard_file.hpp"
#include "parallel/mailbox.hpp"
#include "parallel/run_agreed.hpp"

namespace athanor::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr auto pause_between_polls = std::chrono::microseconds(200);
enum LetterKind : int { question, answer, report, verdict };

std::string random_token() {
  std::random_device device;
  return fmt::format("{:08x}", device());
}

bool is_ready(const std::future<void>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

// Makes the folder if need be and tries whether this rank may write there.
void check_folder(const std::string& folder, int rank) {
  try {
    if (fs::create_directories(folder)) {
      detail::fsync_path(fs::absolute(folder).lexically_normal().parent_path().string());
    }
    const std::string probe = fmt::format("probe-{}", rank);
    detail::write_durably(folder, probe, "");
    fs::remove(fs::path(folder) / probe);
  } catch (const std::exception& error) {
    throw base::CannotCreateError("cannot write checkpoints to {} ({}) choose another checkpoint.dir", folder,
                                  error.what());
  }
}

// The part of a save on one rank.
struct ActiveSave {
  std::int64_t step = 0;
  std::shared_ptr<detail::WriteTask> task;
  std::future<void> written;  // invalid: there was nothing to write any more
  bool is_reported = false;
  SaveFigures figures;
};

// The part of a save that only rank 0 has.
struct Collection {
  std::map<int, std::string> reports;
  std::shared_ptr<detail::ConcludeTask> task;  // from when all have reported
  std::future<void> concluded;
};

}  // namespace

struct CheckpointWriter::State {
  WriterOptions options;
  parallel::Mailbox mailbox;
  std::string token;
  detail::SnapshotBuffer snapshot;
  std::int64_t whole_bytes = -1;  // of a checkpoint, all ranks together; known after prepare()
  std::int64_t attempt = 0;
  Manifest head;  // rank 0: of the save in flight
  std::optional<ActiveSave> active;
  Collection collection;
  std::deque<SaveVerdict> ended;  // not yet returned
  SaveFigures figures;
  std::vector<std::string> verified;
  std::map<int, std::string> questions;  // rank 0: of ranks that may be ahead of it
  std::optional<std::string> answered;

  State(const WriterOptions& writer_options, const parallel::Communicator& world)
      : options(writer_options), mailbox(world, "checkpoint") {}

  bool leads() const { return mailbox.rank() == 0; }
  std::string unfinished_folder() const {
    const std::string name = unfinished_folder_name(active->step, fmt::format("{}-{}", token, attempt));
    return (fs::path(options.checkpoints_dir) / name).string();
  }

  std::string agree(const std::string& mine,
                    const std::function<std::string(const std::vector<std::string>&)>& decide);
  void take_letter();
  void start_write(const SaveRequest& request);
  void start_conclusion();
  void end_save(const std::string& letter);
  void handle(parallel::Letter letter);
  void progress();
  void wait_until_ended();
  std::string allocate_snapshots(std::int64_t bytes);
  void warn(const detail::Preparation& preparation) const;
  std::optional<SaveVerdict> next_ended();
};

// One question to rank 0, which decides when it has all of them. Collective.
std::string CheckpointWriter::State::agree(
    const std::string& mine, const std::function<std::string(const std::vector<std::string>&)>& decide) {
  mailbox.post(0, question, mine);
  if (leads()) {
    while (static_cast<int>(questions.size()) < mailbox.size()) {
      take_letter();
    }
    std::vector<std::string> all;
    for (auto& [rank, text] : questions) {
      all.push_back(std::move(text));
    }
    questions.clear();
    const std::string decision = decide(all);
    for (int target = 0; target < mailbox.size(); ++target) {
      mailbox.post(target, answer, decision);
    }
  }
  while (!answered) {
    take_letter();
  }
  std::string decision = std::move(*answered);
  answered.reset();
  return decision;
}

void CheckpointWriter::State::take_letter() {
  if (auto letter = mailbox.take()) {
    handle(std::move(*letter));
  } else {
    std::this_thread::sleep_for(pause_between_polls);
  }
}

void CheckpointWriter::State::start_write(const SaveRequest& request) {
  auto task = std::make_shared<detail::WriteTask>();
  task->checkpoints_dir = options.checkpoints_dir;
  task->folder = unfinished_folder();
  task->identity = {options.run_id, request.step, mailbox.rank()};
  task->whole_bytes = whole_bytes;
  task->report.rank = mailbox.rank();
  task->report.attempt = attempt;
  task->report.step = request.step;
  task->report.role = request.role;
  active->task = task;
  for (const TensorSlice& slice : request.slices) {
    active->figures.bytes += slice.bytes();
  }
  try {
    base::fault_point("checkpoint.snapshot", mailbox.rank());
    task->slices = request.slices;
    if (options.mode == SaveMode::async) {
      const base::ScopedTimer timer(active->figures.snapshot_s);
      task->slices = snapshot.copy(request.slices);
    }
    std::erase_if(task->slices, [](const TensorSlice& slice) { return slice.extent.count == 0; });
  } catch (const std::exception& error) {
    task->report.failure = error.what();
    task->report_text = detail::to_text(task->report);
    return;
  }
  active->written = post_to_io_thread([task] { task->run(); });
}

void CheckpointWriter::State::start_conclusion() {
  auto task = std::make_shared<detail::ConcludeTask>();
  for (auto& [rank, text] : collection.reports) {
    task->reports.push_back(std::move(text));
  }
  task->head = std::move(head);
  task->publish = {options.checkpoints_dir, unfinished_folder(), options.extra_files};
  task->retention = options.retention;
  task->verified = verified;
  task->verdict.step = active->step;
  collection.task = task;
  collection.concluded = post_to_io_thread([task] { task->run(); });
}

void CheckpointWriter::State::end_save(const std::string& letter) {
  detail::VerdictLetter text = detail::verdict_from_text(letter);
  ATHANOR_CHECK(active && text.attempt == attempt, "a verdict of save {} while save {} is in flight",
                text.attempt, attempt);
  active->figures.write_s = active->task->seconds;
  figures = active->figures;
  active.reset();
  ended.push_back(std::move(text.verdict));
}

void CheckpointWriter::State::handle(parallel::Letter letter) {
  switch (letter.kind) {
    case question:
      questions[letter.source] = std::move(letter.bytes);
      break;
    case answer:
      answered = std::move(letter.bytes);
      break;
    case report:
      collection.reports[letter.source] = std::move(letter.bytes);
      break;
    case verdict:
      end_save(letter.bytes);
      break;
    default:
      throw base::InternalError("a checkpoint letter of kind {} from rank {}", letter.kind, letter.source);
  }
}

void CheckpointWriter::State::progress() {
  if (active && !active->is_reported && (!active->written.valid() || is_ready(active->written))) {
    active->is_reported = true;
    mailbox.post(0, report, std::move(active->task->report_text));
  }
  while (auto letter = mailbox.take()) {
    handle(std::move(*letter));
  }
  if (!collection.task && static_cast<int>(collection.reports.size()) == mailbox.size()) {
    start_conclusion();
  }
  if (collection.task && is_ready(collection.concluded)) {
    const std::string text = detail::to_text(detail::VerdictLetter{attempt, collection.task->verdict});
    collection = {};  // ranks may report the next save as soon as they have the verdict
    for (int target = mailbox.size() - 1; target > 0; --target) {
      mailbox.post(target, verdict, text);
    }
    end_save(text);
  }
}

void CheckpointWriter::State::wait_until_ended() {
  for (progress(); active; progress()) {
    if (options.while_waiting) {
      options.while_waiting();
    }
    std::this_thread::sleep_for(pause_between_polls);
  }
}

// What went wrong on the first rank that could not allocate its buffer, or "". Collective.
std::string CheckpointWriter::State::allocate_snapshots(std::int64_t bytes) {
  std::string failure;
  try {
    snapshot.reserve(bytes);
  } catch (const std::bad_alloc&) {
    failure = fmt::format("{} bytes were refused on {}", bytes, detail::this_process().host);
  }
  return agree(failure, [](const std::vector<std::string>& failures) {
    const auto first = std::ranges::find_if(failures, [](const auto& text) { return !text.empty(); });
    return first == failures.end() ? std::string() : *first;
  });
}

void CheckpointWriter::State::warn(const detail::Preparation& preparation) const {
  if (!preparation.memory_shortage.empty()) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("checkpoints are written synchronously: no memory for snapshots ({})",
                                preparation.memory_shortage));
  }
  const std::int64_t needed = detail::with_margin(preparation.whole_bytes);
  const std::int64_t free = detail::free_bytes(options.checkpoints_dir);
  if (free < needed) {
    base::log_local(base::LogLevel::warning,
                    fmt::format("{} has {} bytes free: too few for one checkpoint of {} bytes",
                                options.checkpoints_dir, free, needed));
  }
}

std::optional<SaveVerdict> CheckpointWriter::State::next_ended() {
  if (ended.empty()) {
    return std::nullopt;
  }
  SaveVerdict oldest = std::move(ended.front());
  ended.pop_front();
  return oldest;
}

CheckpointWriter::CheckpointWriter(const WriterOptions& options, const parallel::Communicator& world) {
  base::read_fault_setting();
  parallel::run_agreed(world, [&] {
    if (options.retention.keep < 1) {
      throw base::ConfigError("checkpoint.keep={} (at least the newest checkpoint stays) use 1 or more",
                              options.retention.keep);
    }
    check_folder(options.checkpoints_dir, world.rank());
  });
  state_ = std::make_unique<State>(options, world);
  state_->token = state_->agree("", [](const auto&) { return random_token(); });
}

CheckpointWriter::~CheckpointWriter() {
  try {
    if (std::uncaught_exceptions() == 0) {
      state_->wait_until_ended();
      state_->mailbox.finish();
    }
  } catch (const std::exception& error) {
    base::log_local(base::LogLevel::warning, fmt::format("the last save was left alone: {}", error.what()));
  }
  if (state_->active && state_->active->written.valid()) {
    state_->active->written.wait();  // it reads memory that is about to go
  }
}

void CheckpointWriter::prepare(const std::vector<TensorSlice>& slices) {
  state_->wait_until_ended();
  const bool is_async = state_->options.mode == SaveMode::async;
  detail::PrepareLetter mine;
  mine.host = detail::this_process().host;
  mine.snapshot_bytes = is_async ? detail::SnapshotBuffer::needed_bytes(slices) : 0;
  mine.held_bytes = state_->snapshot.capacity();
  mine.available_bytes = base::available_memory_bytes();
  mine.shard_bytes = estimate_shard_bytes(slices);
  const auto decide = [&](const std::vector<std::string>& texts) {
    std::vector<detail::PrepareLetter> letters;
    std::ranges::transform(texts, std::back_inserter(letters), detail::prepare_from_text);
    return detail::to_text(detail::decide_preparation(letters));
  };
  auto preparation = detail::preparation_from_text(state_->agree(detail::to_text(mine), decide));
  state_->whole_bytes = preparation.whole_bytes;
  if (is_async && preparation.memory_shortage.empty()) {
    preparation.memory_shortage = state_->allocate_snapshots(mine.snapshot_bytes);
  }
  if (is_async && !preparation.memory_shortage.empty()) {
    state_->options.mode = SaveMode::sync;  // on all ranks: one that waits for others must not keep them
  }
  if (state_->leads()) {
    state_->warn(preparation);
  }
}

void CheckpointWriter::save(SaveRequest request) {
  ATHANOR_CHECK(state_->whole_bytes >= 0, "prepare() comes before the first save");
  const base::Stopwatch watch;
  state_->wait_until_ended();
  ActiveSave& save = state_->active.emplace();
  save.figures.wait_s = watch.seconds();
  save.step = request.step;
  state_->attempt += 1;
  if (state_->leads()) {
    state_->head = std::move(request.head);
    detail::fill_head(state_->head, request.step, state_->options.run_id, state_->mailbox.size());
  }
  state_->start_write(request);
  if (state_->options.mode == SaveMode::sync) {
    state_->wait_until_ended();
  }
}

std::optional<SaveVerdict> CheckpointWriter::poll() {
  state_->progress();
  return state_->next_ended();
}

bool CheckpointWriter::is_saving() const {
  return state_->active.has_value();
}

std::optional<SaveVerdict> CheckpointWriter::finish() {
  state_->wait_until_ended();
  state_->mailbox.finish();
  return state_->next_ended();
}

void CheckpointWriter::note_verified(const std::string& path) {
  // In the spelling of the catalog, which retention compares it with.
  std::error_code error;
  const fs::path normal = fs::path(path + "/").lexically_normal().parent_path();
  const bool is_here = fs::equivalent(normal.parent_path(), state_->options.checkpoints_dir, error);
  state_->verified.push_back(
      is_here ? (fs::path(state_->options.checkpoints_dir) / normal.filename()).string() : path);
}

const SaveFigures& CheckpointWriter::last_figures() const {
  return state_->figures;
}

}  // namespace athanor::checkpoint
