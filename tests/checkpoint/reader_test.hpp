// What the tests of the reader share: a checkpoint in a folder of its own, and damage to it.
#pragma once

#include <gtest/gtest.h>
#include <hdf5.h>

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/io_thread.hpp"
#include "sample_checkpoint.hpp"

namespace athanor::checkpoint::samples {

inline void flip_bit(const fs::path& path, std::int64_t byte, int bit = 3) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(byte);
  const int value = file.get();
  file.seekp(byte);
  file.put(static_cast<char>(value ^ (1 << bit)));
  if (!file) {
    throw std::runtime_error("cannot flip a bit of " + path.string());
  }
}

/// Where the elements of a stored slice begin in its file.
inline std::int64_t slice_offset(const fs::path& folder, const StoredSlice& slice) {
  std::int64_t offset = 0;
  run_on_io_thread([&] {
    const auto file = detail::open_hdf5_file((folder / slice.file).string());
    const detail::Hdf5Handle data(H5Dopen2(file.id(), slice.dataset.c_str(), H5P_DEFAULT), H5Dclose, "open");
    offset = detail::data_offset(data);
  });
  return offset;
}

inline const StoredSlice& slice_of(const Manifest& manifest, const std::string& tensor) {
  return *std::ranges::find(manifest.slices, tensor, &StoredSlice::tensor);
}

/// What a CheckpointError says; "" when there is none. Other exceptions fail the test.
inline std::string refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const base::CheckpointError& error) {
    return error.what();
  }
  return "";
}

inline std::string refusal_of_reading(const fs::path& folder) {
  return refusal([&] {
    Slices targets = samples::whole_slices();
    CheckpointReader(folder.string()).read(samples::views(targets));
  });
}

inline testing::AssertionResult says(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      return testing::AssertionFailure() << "'" << part << "' is not in '" << message << "'";
    }
  }
  return testing::AssertionSuccess();
}

/// A test with a folder of its own for the sample checkpoint.
class ReaderTest : public testing::Test {
 protected:
  /// The sample by three ranks.
  Manifest write(int ranks = 3) { return samples::write_sample(folder(), ranks); }
  fs::path folder() const { return scratch_.path() / "step-00000100"; }

  samples::ScratchFolder scratch_;
};

}  // namespace athanor::checkpoint::samples
