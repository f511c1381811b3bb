// A small checkpoint with every element type and every way of slicing, for any number of writing ranks. Each
// element's value follows from the tensor's name and the element's global index, so any reader can check it.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.hpp"
#include "checkpoint/detail/complete_marker.hpp"
#include "checkpoint/manifest.hpp"
#include "checkpoint/shard_file.hpp"
#include "checkpoint/tensor_slice.hpp"

namespace athanor::checkpoint::samples {

namespace fs = std::filesystem;

/// A slice with memory of its own.
struct OwnedSlice {
  TensorSlice slice;
  std::vector<std::byte> memory;

  OwnedSlice(std::string name, ElementType type, SliceExtent extent)
      : slice{std::move(name), type, std::move(extent), nullptr},
        memory(static_cast<std::size_t>(slice.bytes()), std::byte{0xee}) {
    slice.data = memory.data();
  }
  OwnedSlice(OwnedSlice&&) = default;  // the memory stays where it is
  OwnedSlice& operator=(OwnedSlice&&) = default;
};
using Slices = std::vector<OwnedSlice>;

inline std::vector<TensorSlice> views(const Slices& slices) {
  std::vector<TensorSlice> result;
  for (const OwnedSlice& owned : slices) {
    result.push_back(owned.slice);
  }
  return result;
}

/// Element `index` of tensor `name`, as its bytes: small multiples of 1/4, exact in every type.
inline std::uint64_t element_bits(const std::string& name, ElementType type, std::int64_t index) {
  const auto salt = static_cast<std::int64_t>(base::hash_string(name) % 97);
  const std::int64_t quarters = (index * 7 + salt) % 251 - 125;
  const double value = static_cast<double>(quarters) / 4.0;
  switch (type) {
    case ElementType::f64:
      return std::bit_cast<std::uint64_t>(value);
    case ElementType::f32:
      return std::bit_cast<std::uint32_t>(static_cast<float>(value));
    case ElementType::bf16:
      return std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16;
    case ElementType::f16: {
      if (quarters == 0) {
        return 0;
      }
      int exponent = 0;
      const double fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
      const auto mantissa = static_cast<std::uint64_t>(std::ldexp(fraction * 2.0 - 1.0, 10));
      return (value < 0 ? 0x8000u : 0u) | static_cast<std::uint64_t>(exponent - 1 + 15) << 10 | mantissa;
    }
    case ElementType::i64:
      return static_cast<std::uint64_t>(quarters);
  }
  return 0;
}

inline std::uint64_t read_bits(const TensorSlice& slice, std::int64_t i) {
  std::uint64_t bits = 0;
  const auto width = static_cast<std::size_t>(element_bytes(slice.type));
  std::memcpy(&bits, static_cast<const std::byte*>(slice.data) + static_cast<std::size_t>(i) * width, width);
  return bits;
}

/// The expected bytes of element `i` of a slice's data.
inline std::uint64_t expected_bits(const TensorSlice& slice, std::int64_t i) {
  return element_bits(slice.name, slice.type, slice.extent.box.global_index(slice.extent.first + i));
}

inline void fill(Slices& slices) {
  for (OwnedSlice& owned : slices) {
    const auto width = static_cast<std::size_t>(element_bytes(owned.slice.type));
    for (std::int64_t i = 0; i < owned.slice.extent.count; ++i) {
      const std::uint64_t bits = expected_bits(owned.slice, i);
      std::memcpy(owned.memory.data() + static_cast<std::size_t>(i) * width, &bits, width);
    }
  }
}

/// Elements that do not have their value.
inline std::int64_t count_wrong(const Slices& slices) {
  std::int64_t wrong = 0;
  for (const OwnedSlice& owned : slices) {
    for (std::int64_t i = 0; i < owned.slice.extent.count; ++i) {
      wrong += read_bits(owned.slice, i) != expected_bits(owned.slice, i) ? 1 : 0;
    }
  }
  return wrong;
}

/// The logical tensors.
inline std::map<std::string, StoredTensor> tensors() {
  return {{"student/counts/tokens", {ElementType::i64, {3}}},
          {"student/parameters/norm.weight", {ElementType::f16, {9}}},
          {"teacher/exp_avg/experts.w", {ElementType::f32, {6, 5, 7}}},
          {"teacher/parameters/embedding.weight", {ElementType::f32, {37, 12}}},
          {"teacher/parameters/experts.w", {ElementType::bf16, {6, 5, 7}}},
          {"teacher/parameters/none.weight", {ElementType::f32, {0, 4}}},
          {"teacher/parameters/router.weight", {ElementType::f64, {5, 11}}}};
}

/// What rank `rank` of `ranks` holds: rows, columns, flat ranges of boxes, or all of it on one rank. With
/// several ranks some slices are empty.
inline Slices slices_of_rank(int rank, int ranks) {
  using parallel::ShardSpec;
  Slices slices;
  const auto add = [&](const std::string& name, SliceExtent extent) {
    slices.emplace_back(name, tensors().at(name).type, std::move(extent));
  };
  const auto split = [&](const std::string& name, std::int64_t dim) {
    const std::vector<std::int64_t> shape = tensors().at(name).shape;
    const parallel::Block block = parallel::block_of(shape[static_cast<std::size_t>(dim)], ranks, rank);
    add(name, SliceExtent::whole_box(ShardSpec::slice(shape, dim, block.first, block.count)));
  };
  split("teacher/parameters/embedding.weight", 0);
  split("teacher/parameters/experts.w", 1);
  split("teacher/parameters/none.weight", 0);
  split("student/parameters/norm.weight", 0);
  // A flat range of a column box: the optimizer's state of replicas that share a shard.
  const std::vector<std::int64_t> experts = tensors().at("teacher/exp_avg/experts.w").shape;
  const int halves = ranks > 1 ? 2 : 1;
  const int half = rank % halves;
  const int sharers = (ranks - half + halves - 1) / halves;
  const parallel::Block columns = parallel::block_of(experts[2], halves, half);
  const ShardSpec box = ShardSpec::slice(experts, 2, columns.first, columns.count);
  const parallel::Block range = parallel::block_of(box.local_numel(), sharers, rank / halves);
  add("teacher/exp_avg/experts.w", {box, range.first, range.count});
  if (rank == ranks - 1) {
    add("teacher/parameters/router.weight",
        SliceExtent::whole_box(ShardSpec::whole(tensors().at("teacher/parameters/router.weight").shape)));
    add("student/counts/tokens", SliceExtent::whole_box(ShardSpec::whole({3})));
  }
  return slices;
}

/// Whole tensors.
inline Slices whole_slices() {
  Slices slices;
  for (const auto& [name, tensor] : tensors()) {
    slices.emplace_back(name, tensor.type, SliceExtent::whole_box(parallel::ShardSpec::whole(tensor.shape)));
  }
  return slices;
}

inline std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::stringstream text;
  text << stream.rdbuf();
  return text.str();
}

inline void write_file(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// Writes manifest.json with this text and the COMPLETE that fits it.
inline void write_manifest_text(const fs::path& folder, const std::string& text) {
  write_file(folder / "manifest.json", text);
  write_file(folder / "COMPLETE", detail::complete_marker_text(text));
}

inline Manifest empty_manifest(int ranks, std::int64_t step, const std::string& run_id) {
  Manifest manifest;
  manifest.run_id = run_id;
  manifest.step = step;
  manifest.created = "2026-01-02T03:04:05Z";
  manifest.program = "athanor 0.1.0";
  manifest.world_size = ranks;
  manifest.config = "[run]\nseed = 7\n";
  manifest.data = {{"train", {{"tokens", 1234}, {"fingerprint", "00ff00ff00ff00ff"}}}};
  manifest.roles = {
      {"teacher",
       "teacher",
       {{"ranks", ranks}, {"dp", ranks}, {"tp", 1}, {"ep", 1}, {"zero", 1}},
       {{"step", step}}},
      {"student", "student", {{"ranks", ranks}, {"dp", ranks}, {"tp", 1}, {"ep", 1}, {"zero", 0}}, nullptr}};
  return manifest;
}

/// A published checkpoint of these slices (one list for each rank).
inline Manifest write_checkpoint(const fs::path& folder, const std::vector<std::vector<TensorSlice>>& ranks,
                                 std::int64_t step = 100, const std::string& run_id = "0123456789abcdef") {
  fs::create_directories(folder);
  Manifest manifest = empty_manifest(static_cast<int>(ranks.size()), step, run_id);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    WrittenShard shard = write_shard(folder.string(), {run_id, step, static_cast<int>(rank)}, ranks[rank]);
    manifest.files.push_back(shard.file);
    manifest.slices.insert(manifest.slices.end(), shard.slices.begin(), shard.slices.end());
    for (const TensorSlice& slice : ranks[rank]) {
      manifest.tensors[slice.name] = {slice.type, slice.extent.box.global_shape};
    }
  }
  write_index(folder.string(), manifest);
  write_manifest_text(folder, to_json(manifest).dump(1));
  return manifest;
}

/// The sample, written by `ranks` ranks.
inline Manifest write_sample(const fs::path& folder, int ranks, std::int64_t step = 100,
                             const std::string& run_id = "0123456789abcdef") {
  std::vector<Slices> slices;
  std::vector<std::vector<TensorSlice>> pointers;
  for (int rank = 0; rank < ranks; ++rank) {
    slices.push_back(slices_of_rank(rank, ranks));
    fill(slices.back());
    pointers.push_back(views(slices.back()));
  }
  return write_checkpoint(folder, pointers, step, run_id);
}

/// A folder of its own that goes away with the object.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (fs::temp_directory_path() / "athanor-checkpoint-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~ScratchFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

}  // namespace athanor::checkpoint::samples
