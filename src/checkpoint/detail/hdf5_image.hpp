// The metadata of a new HDF5 file, laid out in memory.
//
// The library leaves a file that it could not write half open and fails later, when it cleans up. So it never
// writes to a disk here: a file driver of ours keeps what it writes (metadata: the payload of early
// allocated, unfilled datasets is never written), and we store that by plain calls, whose errors are
// ordinary.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/payload_file.hpp"

namespace athanor::checkpoint::detail {

/// What HDF5 has written of a file, by pages, and how far the file extends.
struct SparseBytes {
  static constexpr std::uint64_t page_bytes = 4096;

  std::map<std::uint64_t, std::array<std::byte, page_bytes>> pages;  // by number
  std::uint64_t written_end = 0;
  std::uint64_t allocated_end = 0;

  void write(std::uint64_t begin, std::size_t bytes, const std::byte* data);
  /// Zeros where nothing has been written.
  void read(std::uint64_t begin, std::size_t bytes, std::byte* data) const;
};

class Hdf5Image {
 public:
  /// A new, empty file of format V110 (metadata with checksums). Metadata are reserved in blocks of
  /// `metadata_bytes` instead of among the data. Throws Hdf5Failure, as all below.
  explicit Hdf5Image(std::int64_t metadata_bytes);

  /// The open file.
  hid_t id() const { return file_.id(); }
  /// Completes the metadata; nothing can be added afterwards.
  void close();
  /// Size of the file, payload included. After close().
  std::int64_t bytes() const;
  /// Writes the metadata. Bytes of payload that share a page with them are written too, as zeros: write the
  /// payload after this. Throws IoError. After close().
  void write_to(const PayloadFile& file) const;

 private:
  std::unique_ptr<SparseBytes> contents_;  // before the handles that point to it
  Hdf5Handle driver_;
  Hdf5Handle file_;
};

}  // namespace athanor::checkpoint::detail
