// Small files that survive a power loss, and what the file system says. No HDF5, no MPI.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace athanor::checkpoint::detail {

/// fsync of a file or folder by path. Throws IoError.
void fsync_path(const std::string& path);

/// Writes <folder>/<name> aside, fsyncs it and renames it there; the folder itself is not fsynced. Throws
/// IoError.
void write_durably(const std::string& folder, const std::string& name, std::string_view bytes);

/// Copies a file to <folder>/<name> in the same way. Throws IoError, MissingInputError for the source.
void copy_durably(const std::string& source, const std::string& folder, const std::string& name);

/// rename(2). Throws IoError.
void rename_path(const std::string& from, const std::string& to);

/// The whole file. Throws IoError, also when it is absent.
std::string read_whole_file(const std::string& path);

/// Bytes of the file system of `path` that this process may still use. Throws IoError.
std::int64_t free_bytes(const std::string& path);

/// Bytes on disk of the files directly in `folder`; 0 when it is absent.
std::int64_t allocated_bytes(const std::string& folder);

/// The text of an errno value, e.g. "No space left on device".
std::string reason_of(int error_number);

}  // namespace athanor::checkpoint::detail
