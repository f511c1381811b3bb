// Saves checkpoints of a job, beside training: snapshot, one writing thread a rank, publish by world rank 0.
//
// Nothing here blocks on other ranks except prepare() and finish(): a rank reports "written" or "failed" to
// world rank 0 by a letter, rank 0 publishes when all have written (or discards when one failed) and sends
// the verdict back by a letter. Roles at different paces can so share one cut.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/catalog.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/tensor_slice.hpp"
#include "parallel/communicator.hpp"

namespace athanor::checkpoint {

/// Whether a save goes on beside training.
enum class SaveMode { async, sync };

struct WriterOptions {
  std::string checkpoints_dir;
  SaveMode mode = SaveMode::async;
  RetentionPolicy retention;
  std::string run_id;
  std::vector<std::pair<std::string, std::string>> extra_files;  ///< as PublishOptions
  /// Called again and again while a save is waited for: other transfers between ranks must go on.
  std::function<void()> while_waiting;
};

/// What a rank gives for a save. Slices point to live memory, which may change as soon as save() returns.
struct SaveRequest {
  std::int64_t step = 0;
  std::vector<TensorSlice> slices;  ///< each part of a tensor from exactly one rank of the job
  /// Filled by the ranks that lead a role (others leave it empty): layout and scalar state of that role.
  std::optional<StoredRole> role;
  /// Filled by world rank 0: config, data.
  Manifest head;
};

/// What became of a save; equal on all ranks once it arrived there.
struct SaveVerdict {
  std::int64_t step = 0;
  bool published = false;
  std::string path;    ///< when published
  std::string reason;  ///< when not: rank and reason of the first failure
};

/// Figures for metrics and `bench checkpoint`.
struct SaveFigures {
  double snapshot_s = 0.0;  ///< the copy into the snapshot buffer: what training stands still for
  double wait_s = 0.0;      ///< back-pressure: waited for the save before this one
  double write_s = 0.0;     ///< this rank's write, fsync included
  std::int64_t bytes = 0;   ///< payload of this rank
};

class CheckpointWriter {
 public:
  /// Makes the folder and tries whether every rank may write there: CannotCreateError on all ranks alike if
  /// not; ConfigError for keep < 1. Collective over `world`.
  CheckpointWriter(const WriterOptions& options, const parallel::Communicator& world);
  /// Waits for a save in flight.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Allocates the snapshot buffer for saves of these slices, checks that memory (MemAvailable over the ranks
  /// of this machine) and disk space suffice for one save, warns otherwise (memory short: saves become
  /// synchronous on all ranks). Comes before the first save. Collective over world.
  void prepare(const std::vector<TensorSlice>& slices);

  /// Starts a save: waits for one in flight, snapshots, hands over to the I/O thread, returns (async), or
  /// waits for the verdict (sync). Every rank calls it for the same steps in the same order. A failure of the
  /// file work is a verdict, never an exception.
  void save(SaveRequest request);
  /// Call once a step: passes letters on. Returns the verdict of a save that has ended and was not returned
  /// yet, the oldest first.
  std::optional<SaveVerdict> poll();
  bool is_saving() const;
  /// Waits until no save is in flight; returns as poll(). Every rank calls it.
  std::optional<SaveVerdict> finish();
  /// Paths of checkpoints that were read back and verified in this job (protects them from removal).
  void note_verified(const std::string& path);
  /// Of the last save that ended on this rank.
  const SaveFigures& last_figures() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace athanor::checkpoint
