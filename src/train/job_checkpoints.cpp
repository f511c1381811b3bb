#include "train/job_checkpoints.hpp"

#include <algorithm>
#include <filesystem>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/log.hpp"
#include "base/stopwatch.hpp"
#include "checkpoint/catalog.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/run_agreed.hpp"
#include "train/objective.hpp"
#include "train/state_dict.hpp"

namespace athanor::train {
namespace {

constexpr std::int64_t max_failures = 3;

checkpoint::WriterOptions writer_options(const JobCheckpoints::Job& job, Trainer& trainer) {
  checkpoint::WriterOptions options;
  options.checkpoints_dir = job.options.dir;
  options.mode = job.options.async ? checkpoint::SaveMode::async : checkpoint::SaveMode::sync;
  options.retention = {job.options.keep, job.options.pinned};
  options.run_id = job.head.run_id;
  options.extra_files = job.extra_files;
  options.while_waiting = [&trainer] { trainer.objective().progress(); };
  return options;
}

// What rank 0 tries, best first.
std::vector<std::string> candidates(const ResumeOptions& options, const std::string& checkpoints_dir) {
  const std::vector<checkpoint::CatalogEntry> entries = checkpoint::list_checkpoints(checkpoints_dir);
  if (options.mode == ResumeMode::path) {
    const std::string path = checkpoint::resolve_checkpoint(options.path);
    const checkpoint::Manifest manifest = checkpoint::CheckpointReader(path).manifest();
    for (const checkpoint::CatalogEntry& entry : entries) {
      const bool is_later =
          entry.step > manifest.step || manifest.roles.empty() || manifest.roles.front().state.is_null();
      if (entry.status == checkpoint::CheckpointStatus::whole && is_later &&
          !std::filesystem::equivalent(entry.path, path)) {
        throw base::CannotCreateError(
            "run.resume={} (the run already has a checkpoint of step {}, which this one would come to again) "
            "choose another run.dir, or remove the later checkpoints",
            options.path, entry.step);
      }
    }
    return {path};
  }
  if (options.mode == ResumeMode::never && !entries.empty()) {
    throw base::CannotCreateError(
        "run.resume=never ({} holds checkpoints, the newest of step {}) choose another run.dir, or resume",
        checkpoints_dir, entries.front().step);
  }
  std::vector<std::string> paths;
  for (const checkpoint::CatalogEntry& entry : entries) {
    if (entry.status == checkpoint::CheckpointStatus::whole) {
      paths.push_back(entry.path);
    } else {
      base::log_warning("{} is not loaded ({})", entry.path, entry.reason);
    }
  }
  if (paths.empty() && !entries.empty()) {
    throw base::CheckpointError(
        "{} holds {} checkpoints (none of them is whole: {}) repair one, or start afresh in another run.dir",
        checkpoints_dir, entries.size(), entries.front().reason);
  }
  return paths;
}

std::string join_lines(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) {
    text += line + "\n";
  }
  return text;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

// One checkpoint into the trainer; nothing has changed when it throws.
Resumed load(const std::string& path, const ResumeOptions& options, const checkpoint::Manifest& current,
             Trainer& trainer, const parallel::Communicator& world) {
  std::optional<checkpoint::CheckpointReader> reader;
  parallel::run_agreed(world, [&] { reader.emplace(path); });
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0 && options.check) {
      options.check(reader->manifest(), current);
    }
  });
  std::optional<StagedState> staged;
  parallel::run_agreed(world, [&] { staged.emplace(trainer, *reader); });
  std::move(*staged).apply(trainer);
  return {path, reader->manifest().run_id, trainer.state().step};
}

// The first of `paths` that can be loaded; those before it are marked bad, unless only one is asked for.
// `last_reason`: why the last one that was tried could not be.
std::optional<Resumed> load_first(const std::vector<std::string>& paths, const ResumeOptions& options,
                                  const checkpoint::Manifest& current, Trainer& trainer,
                                  const parallel::Communicator& world, std::string& last_reason) {
  for (const std::string& path : paths) {
    const base::Stopwatch watch;
    try {
      Resumed resumed = load(path, options, current, trainer, world);
      base::log_info("went on from {} (step {}, read and verified in {:.2f} s)", path, resumed.step,
                     watch.seconds());
      return resumed;
    } catch (const base::Error& error) {  // the same on all ranks
      const bool is_damage =
          error.exit_code() == base::ExitCode::bad_data || error.exit_code() == base::ExitCode::io;
      if (options.mode == ResumeMode::path || !is_damage) {
        throw;
      }
      last_reason = error.what();
      base::log_warning("CHECKPOINT NOT LOADED, marked bad, trying the one before it: {}", last_reason);
      if (world.rank() == 0) {
        checkpoint::mark_bad(path, last_reason);
      }
    }
  }
  return std::nullopt;
}

// Whether a checkpoint was saved so soon after a trip of the guard that the trip may be in it.
bool is_near_a_trip(const std::string& path, std::int64_t step, std::int64_t hold_steps) {
  const checkpoint::Manifest manifest = checkpoint::CheckpointReader(path).manifest();
  for (const checkpoint::StoredRole& role : manifest.roles) {
    if (role.state.is_object() && role.state.contains("guard")) {
      const auto last_trip = role.state["guard"].value("last_trip", std::int64_t{0});
      if (last_trip > 0 && step < last_trip + hold_steps) {
        return true;
      }
    }
  }
  return false;
}

// What rank 0 goes back to, best first.
std::vector<std::string> healthy_before(const std::string& checkpoints_dir, std::int64_t step,
                                        std::int64_t hold_steps) {
  std::vector<std::string> paths;
  for (const checkpoint::CatalogEntry& entry : checkpoint::list_checkpoints(checkpoints_dir)) {
    const bool is_candidate = entry.status == checkpoint::CheckpointStatus::whole && entry.step < step;
    try {
      if (is_candidate && !is_near_a_trip(entry.path, entry.step, hold_steps)) {
        paths.push_back(entry.path);
      }
    } catch (const base::Error& error) {
      base::log_warning("{} is not gone back to ({})", entry.path, error.what());
    }
  }
  return paths;
}

}  // namespace

std::optional<Resumed> resume(const ResumeOptions& options, const std::string& checkpoints_dir,
                              const checkpoint::Manifest& current, Trainer& trainer,
                              const parallel::Communicator& world) {
  std::string text;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      text = join_lines(candidates(options, checkpoints_dir));
    }
  });
  const std::vector<std::string> paths = split_lines(parallel::broadcast_string(text, 0, world));
  std::string last_reason;
  std::optional<Resumed> resumed = load_first(paths, options, current, trainer, world, last_reason);
  if (!resumed && !paths.empty()) {
    throw base::CheckpointError(
        "no checkpoint in {} can be loaded (the oldest: {}) repair one, or start afresh in another run.dir",
        checkpoints_dir, last_reason);
  }
  return resumed;
}

std::optional<Resumed> go_back(const std::string& checkpoints_dir, std::int64_t step, std::int64_t hold_steps,
                               Trainer& trainer, const parallel::Communicator& world) {
  std::string text;
  parallel::run_agreed(world, [&] {
    if (world.rank() == 0) {
      text = join_lines(healthy_before(checkpoints_dir, step, hold_steps));
    }
  });
  const std::vector<std::string> paths = split_lines(parallel::broadcast_string(text, 0, world));
  std::string last_reason;
  std::optional<Resumed> resumed = load_first(paths, {}, {}, trainer, world, last_reason);
  if (resumed && world.rank() == 0) {
    for (const checkpoint::CatalogEntry& entry : checkpoint::list_checkpoints(checkpoints_dir)) {
      if (entry.status == checkpoint::CheckpointStatus::whole && entry.step > resumed->step) {
        checkpoint::mark_bad(entry.path, fmt::format("the run went back from it to step {}", resumed->step));
      }
    }
  }
  return resumed;
}

JobCheckpoints::JobCheckpoints(Job job, Trainer& trainer, const parallel::Communicator& world)
    : job_(std::move(job)), trainer_(&trainer), is_head_(world.rank() == 0) {
  if (job_.options.enabled) {
    writer_.emplace(writer_options(job_, trainer), world);
    writer_->prepare(written_slices(trainer));
  }
}

bool JobCheckpoints::is_due(std::int64_t step, std::int64_t save_requests) const {
  return job_.options.enabled && (step == job_.last_step || save_requests > 0 ||
                                  (job_.options.every > 0 && step % job_.options.every == 0));
}

double JobCheckpoints::save() {
  const base::ScopedSpan span(base::SpanKind::phase, "checkpoint");
  const base::Stopwatch watch;
  base::fault_point("train.save", trainer_->grid().role().rank());
  last_save_watch_ = base::Stopwatch();
  wants_save_ = false;
  checkpoint::SaveRequest request;
  request.step = last_save_step_ = trainer_->state().step;
  request.slices = written_slices(*trainer_);
  if (trainer_->grid().role().rank() == 0) {
    request.role = stored_role(*trainer_);
  }
  if (is_head_) {
    request.head = job_.head;
  }
  writer_->save(std::move(request));
  const double stall = watch.seconds();
  poll();
  return stall;
}

void JobCheckpoints::poll() {
  while (writer_) {
    const std::optional<checkpoint::SaveVerdict> verdict = writer_->poll();
    if (!verdict) {
      break;
    }
    take(*verdict);
  }
}

void JobCheckpoints::finish() {
  const base::ScopedSpan span(base::SpanKind::phase, "checkpoint");
  while (writer_) {
    while (const std::optional<checkpoint::SaveVerdict> verdict = writer_->finish()) {
      take(*verdict);
    }
    if (!wants_save_) {  // all ranks have the same verdict by now
      return;
    }
    save();
  }
}

void JobCheckpoints::drain() {
  while (writer_) {
    const std::optional<checkpoint::SaveVerdict> verdict = writer_->finish();
    if (!verdict) {
      break;
    }
    take(*verdict);
  }
  wants_save_ = false;
}

void JobCheckpoints::take(const checkpoint::SaveVerdict& verdict) {
  if (verdict.published) {
    failures_ = 0;
    last_path_ = verdict.path;
    if (verdict.step == last_save_step_) {
      longest_save_s_ = std::max(longest_save_s_, last_save_watch_.seconds());
    }
    const checkpoint::SaveFigures& figures = writer_->last_figures();
    base::log_info("checkpoint {} (snapshot {:.3f} s, waited {:.3f} s, written in {:.2f} s)", verdict.path,
                   figures.snapshot_s, figures.wait_s, figures.write_s);
    return;
  }
  ++failures_;
  if (job_.options.on_error == OnSaveError::stop || failures_ >= max_failures) {
    throw base::IoError(
        "the checkpoint of step {} could not be written ({}; attempt {} in a row, checkpoint.on_error={}) "
        "free "
        "space or choose another checkpoint.dir, then resume from the last one",
        verdict.step, verdict.reason, failures_,
        job_.options.on_error == OnSaveError::stop ? "stop" : "retry");
  }
  base::log_warning("the checkpoint of step {} could not be written ({}) trying again after the next step",
                    verdict.step, verdict.reason);
  // A verdict may arrive when the next save has begun already: that one is the other attempt.
  wants_save_ = verdict.step == last_save_step_;
}

}  // namespace athanor::train
