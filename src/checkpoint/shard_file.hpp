// One rank's HDF5 file of a checkpoint. HDF5 lays the datasets out (contiguous, allocated early); the payload
// is then written and read at their offsets by plain system calls, so that a full disk is an ordinary error
// and no copy or library lock is in the way. Any HDF5 reader sees ordinary datasets.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/manifest.hpp"
#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint {

/// Attributes of the file's root: a file of another run, step or rank is recognised.
struct ShardIdentity {
  std::string run_id;
  std::int64_t step = 0;
  int rank = 0;
};

/// Bytes that a file of these slices needs, metadata included (an upper bound, for the space preflight).
std::int64_t estimate_shard_bytes(const std::vector<TensorSlice>& slices);

/// Writes <folder>/rank-NNNNN.h5 with all slices (data read from memory), fsyncs it, and returns its slices
/// with checksums and its size. Slices of one tensor name go to datasets "<name>/0", "<name>/1", ... Space is
/// reserved before the payload. Call on the I/O thread. Throws IoError (with the system's reason), after
/// removing the file.
struct WrittenShard {
  StoredFile file;
  std::vector<StoredSlice> slices;
};
WrittenShard write_shard(const std::string& folder, const ShardIdentity& identity,
                         const std::vector<TensorSlice>& slices);

/// Writes <folder>/index.h5: one virtual dataset for each tensor of the manifest, under its name, with its
/// full shape; bf16 as unsigned 16-bit integers with an attribute saying so. Call on the I/O thread.
void write_index(const std::string& folder, const Manifest& manifest);

}  // namespace athanor::checkpoint
