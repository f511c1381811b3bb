// A training job's checkpoints: when to save, what to do when a save fails, where to go on from.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/stopwatch.hpp"
#include "checkpoint/checkpoint_writer.hpp"
#include "checkpoint/manifest.hpp"
#include "parallel/communicator.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

enum class OnSaveError {
  retry,  ///< warn and save again after the next step; stop after three failures in a row
  stop,   ///< stop with exit code 74
};

/// `checkpoint.*` of the configuration.
struct CheckpointOptions {
  bool enabled = true;               ///< false: nothing is saved, not at the end either
  std::string dir;                   ///< empty: <run.dir>/checkpoints
  std::int64_t every = 500;          ///< steps; 0: only at the end
  std::int64_t keep = 3;             ///< newest ones that stay
  std::vector<std::int64_t> pinned;  ///< steps that stay for ever
  bool async = true;
  OnSaveError on_error = OnSaveError::retry;
};

/// Where a run starts from.
enum class ResumeMode {
  automatic,  ///< the newest whole checkpoint of the run; none at all: a fresh start
  never,      ///< a fresh start; refused when the run has checkpoints
  path,       ///< a named checkpoint
};

struct ResumeOptions {
  ResumeMode mode = ResumeMode::automatic;
  std::string path;  ///< mode path
  /// Called on rank 0 with the stored manifest and the job's own before anything is read; throws ConfigError
  /// where the two cannot go together.
  std::function<void(const checkpoint::Manifest& stored, const checkpoint::Manifest& current)> check;
};

/// Where a job went on.
struct Resumed {
  std::string path;
  std::string run_id;
  std::int64_t step = 0;
};

/// Finds a checkpoint and loads it: rank 0 chooses, all ranks read into memory of their own, and only when
/// all have succeeded is the trainer touched. In mode automatic a checkpoint that cannot be read is marked
/// bad with a warning and the next older one is tried. Nothing: a fresh start. Collective over `world`.
/// Throws CheckpointError (some checkpoints, none loadable), CannotCreateError (mode never and there are
/// some; mode path and the run has newer ones), MissingInputError, ConfigError.
std::optional<Resumed> resume(const ResumeOptions& options, const std::string& checkpoints_dir,
                              const checkpoint::Manifest& current, Trainer& trainer,
                              const parallel::Communicator& world);

/// Loads the newest checkpoint from before `step` that was not saved within `hold_steps` of a trip of the
/// numeric guard; later ones are marked bad, as is one that cannot be read. Nothing: there is none, and the
/// trainer is as it was. No save may be in flight. Collective over `world`, which is one role.
std::optional<Resumed> go_back(const std::string& checkpoints_dir, std::int64_t step, std::int64_t hold_steps,
                               Trainer& trainer, const parallel::Communicator& world);

/// Saves of a running job.
class JobCheckpoints {
 public:
  /// `head`: config, data and run_id of the job; `extra_files` as checkpoint::PublishOptions. Allocates the
  /// snapshot. Collective over `world`.
  struct Job {
    CheckpointOptions options;
    checkpoint::Manifest head;
    std::vector<std::pair<std::string, std::string>> extra_files;
    std::int64_t last_step = 0;  ///< saved in any case
  };
  JobCheckpoints(Job job, Trainer& trainer, const parallel::Communicator& world);

  /// Whether the state after `step` is to be saved; equal on all ranks.
  bool is_due(std::int64_t step, std::int64_t save_requests) const;
  /// Saves the trainer's state; returns the seconds training stood still. Every rank calls it for the same
  /// steps.
  double save();
  /// Moves a save along and reports how one ended; call between steps. Throws IoError as on_error says.
  void poll();
  /// Whether this rank asks for another attempt (after a failed save).
  bool wants_save() const { return wants_save_; }
  bool is_saving() const { return writer_ && writer_->is_saving(); }
  /// Waits for the save in flight; the state of the last step is saved when this returns, or IoError. Every
  /// rank calls it.
  void finish();
  /// Waits for the save in flight; one that fails is not tried again. Every rank calls it.
  void drain();
  /// The last one of this job stays, whatever is saved after it.
  void protect_last() {
    if (writer_ && !last_path_.empty()) {
      writer_->note_verified(last_path_);
    }
  }
  /// A checkpoint of this job that was read back whole.
  void note_verified(const std::string& path) {
    if (writer_) {
      writer_->note_verified(path);
    }
  }
  const std::string& last_path() const { return last_path_; }
  /// Longest time of this job from the start of a save until it was known to be published; 0: none was.
  double longest_save_s() const { return longest_save_s_; }

 private:
  void take(const checkpoint::SaveVerdict& verdict);

  Job job_;
  Trainer* trainer_;
  bool is_head_ = false;
  std::optional<checkpoint::CheckpointWriter> writer_;  // none: nothing is saved
  std::int64_t last_save_step_ = -1;
  base::Stopwatch last_save_watch_;
  double longest_save_s_ = 0.0;
  std::int64_t failures_ = 0;
  bool wants_save_ = false;
  std::string last_path_;
};

}  // namespace athanor::train
