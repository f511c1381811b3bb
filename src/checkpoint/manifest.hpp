// What a checkpoint says of itself: manifest.json, specified in docs/checkpoint_format.md.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint {

inline constexpr int format_version = 1;
inline constexpr const char* format_name = "athanor-checkpoint";
/// The run's tokenizer model, kept in every checkpoint.
inline constexpr const char* tokenizer_file = "tokenizer.model";
/// Every block of this many bytes of a stored slice (the last may be shorter) has a checksum of its own, so a
/// partial read verifies just what it reads.
inline constexpr std::int64_t checksum_block_bytes = std::int64_t{16} << 20;

/// One stored slice.
struct StoredSlice {
  std::string tensor;   ///< the logical name
  std::string file;     ///< in the checkpoint's folder, e.g. "rank-00003.h5"
  std::string dataset;  ///< HDF5 path in it: 1-D, contiguous, extent.count elements
  SliceExtent extent;
  std::vector<std::uint64_t> checksums;  ///< XXH3-64 of each block, taken from the snapshot in memory
};

/// One logical tensor.
struct StoredTensor {
  ElementType type = ElementType::f32;
  std::vector<std::int64_t> shape;
};

struct StoredFile {
  std::string name;
  std::int64_t bytes = 0;
  int rank = 0;  ///< world rank that wrote it
};

/// A role's part: how it was laid out (for people; loading does not need it) and its scalar state.
struct StoredRole {
  std::string name;
  std::string kind;       ///< "teacher", "student"
  nlohmann::json layout;  ///< {"ranks", "dp", "tp", "ep", "zero"}
  nlohmann::json state;   ///< TrainState's scalars; null in an imported checkpoint (weights only)
};

struct Manifest {
  int version = format_version;
  std::string run_id;     ///< 16 hex digits, drawn when a run folder is made; every file of it carries it
  std::int64_t step = 0;  ///< optimizer steps done
  std::string created;    ///< UTC, ISO 8601
  std::string program;    ///< "athanor 0.1.0"
  int world_size = 1;
  std::string config;   ///< the run's resolved configuration, INI text
  nlohmann::json data;  ///< fingerprints of token files and tokenizer
  std::vector<StoredRole> roles;
  std::vector<StoredFile> files;
  std::map<std::string, StoredTensor> tensors;
  std::vector<StoredSlice> slices;

  const StoredRole* find_role(const std::string& name) const;
  /// Bytes of all slices.
  std::int64_t payload_bytes() const;
};

nlohmann::json to_json(const Manifest& manifest);
/// Throws CheckpointError naming what is missing or malformed; a newer version is refused by number.
Manifest manifest_from_json(const nlohmann::json& json);
/// As manifest_from_json, of the text of manifest.json, which may be anything.
Manifest manifest_from_text(const std::string& text);
/// The part of a manifest that one writing rank reports: its file and slices.
nlohmann::json slices_to_json(const std::vector<StoredSlice>& slices);
std::vector<StoredSlice> slices_from_json(const nlohmann::json& json);

}  // namespace athanor::checkpoint
