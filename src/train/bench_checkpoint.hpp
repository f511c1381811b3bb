// `athanor bench checkpoint`: saving and loading a training state against raw file writes and reads of as
// many bytes by the same processes, alternating in one run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/communicator.hpp"
#include "train/bench_support.hpp"
#include "train/trainer.hpp"

namespace athanor::train {

struct BenchCheckpointOptions {
  TrainerOptions trainer;
  std::string folder;        ///< on the file system to measure; its contents are removed afterwards
  std::int64_t rounds = 10;  ///< alternations
};

struct BenchCheckpointResult {
  std::int64_t bytes = 0;       ///< payload of one checkpoint, all ranks
  std::int64_t disk_bytes = 0;  ///< of its folder
  std::int64_t parameters = 0;
  Spread raw_write;   ///< bytes/s: one file a rank, written in 16 MiB pieces, fsynced
  Spread save;        ///< bytes/s: from the call to the published checkpoint
  Spread save_ratio;  ///< of the two of one round
  Spread raw_read;    ///< bytes/s, the page cache dropped first
  Spread load;        ///< bytes/s, the page cache dropped first, checksums verified, state handed over
  Spread load_ratio;
  Spread stall_s;            ///< asynchronous save: what training stood still for
  Spread copy_s;             ///< one memory copy of this rank's state, for comparison
  Spread step_s;             ///< a step without a save
  Spread overlapped_step_s;  ///< a step while a save was in flight
  Spread slowdown;           ///< ratio of the two of one round
};

/// Collective over `world`, which is the role.
BenchCheckpointResult bench_checkpoint(const BenchCheckpointOptions& options,
                                       const parallel::Communicator& world);

}  // namespace athanor::train
