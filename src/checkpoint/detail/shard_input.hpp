// One shard file of a checkpoint, opened for reading. On the I/O thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/payload_file.hpp"
#include "checkpoint/manifest.hpp"

namespace athanor::checkpoint::detail {

/// Throws CheckpointError unless the file is there with the size that the manifest says.
void check_file_size(const std::string& folder, const StoredFile& file);

class ShardInput {
 public:
  /// Throws CheckpointError when the file is damaged or is that of another run, step or rank.
  ShardInput(const std::string& folder, const Manifest& manifest, const StoredFile& file);

  const PayloadFile& payload() const { return payload_; }

  /// Where the elements of a slice begin in the file; its dataset has the type and count of the manifest.
  /// Throws CheckpointError.
  std::int64_t locate(const StoredSlice& slice) const;
  /// Throws CheckpointError unless the dataset's attributes agree with the manifest.
  void check_attributes(const StoredSlice& slice) const;

 private:
  void check_identity(const Manifest& manifest, const StoredFile& file) const;
  Hdf5Handle open_dataset(const StoredSlice& slice) const;

  const Manifest& manifest_;
  PayloadFile payload_;
  Hdf5Handle hdf5_;
};

/// Elements [first, first + count) of a slice whose bytes have one checksum.
struct SliceBlock {
  std::int64_t index = 0;
  std::int64_t first = 0;
  std::int64_t count = 0;
};
std::int64_t block_count(const StoredSlice& slice);
SliceBlock block_at(const StoredSlice& slice, ElementType type, std::int64_t index);

/// Reads a block of a slice that begins at `slice_offset` of the file to `data`. Throws CheckpointError,
/// naming tensor, slice, file and bytes, when it does not have its checksum.
void read_block(const PayloadFile& file, const StoredSlice& slice, ElementType type, const SliceBlock& block,
                std::int64_t slice_offset, std::byte* data);
/// Throws CheckpointError, naming the element, when one of `count` elements at `data`, which begin at element
/// `first` of the slice, is not finite.
void check_finite(const StoredSlice& slice, ElementType type, std::int64_t first, std::int64_t count,
                  const std::byte* data);

}  // namespace athanor::checkpoint::detail
