// What must hold of a manifest before anything is done with its numbers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/manifest.hpp"

namespace athanor::checkpoint::detail {

/// Throws CheckpointError unless `name` is an HDF5 path of one or more non-empty parts, none "." or "..".
void check_tensor_name(const std::string& name);
/// Throws CheckpointError unless `name` is a plain file name (no folder in it, not hidden).
void check_file_name(const std::string& name);
/// Elements of a tensor; throws CheckpointError unless it has 1 to 32 dimensions (HDF5's limit) and the bytes
/// of 8-byte elements fit 63 bits, zero extents counted as one.
std::int64_t checked_numel(const std::vector<std::int64_t>& shape, const std::string& where);
/// Throws CheckpointError unless box and range lie inside the tensor and each block has its checksum.
void check_slice(const StoredSlice& slice, ElementType type);
/// The whole manifest: slices belong to its tensors and files, no dataset is named twice, files are large
/// enough, and every tensor's elements are stored exactly once.
void check_manifest(const Manifest& manifest);

}  // namespace athanor::checkpoint::detail
