// A new HDF5 file is there wholly or not at all.
#pragma once

#include <functional>
#include <string>

namespace athanor::checkpoint::detail {

/// Runs `write`, which makes the file at `path`. When it fails, the file is removed; an Hdf5Failure becomes
/// an IoError that names the path. Throws IoError, touching nothing, when `path` exists already.
void write_new_hdf5(const std::string& path, const std::function<void()>& write);

}  // namespace athanor::checkpoint::detail
