#include "checkpoint/shard_file.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/hdf5_output.hpp"
#include "checkpoint/detail/payload_file.hpp"
#include "checkpoint/io_thread.hpp"

namespace athanor::checkpoint {
namespace {

// Per dataset: its header with attributes, its group, its name, with room to spare.
constexpr std::int64_t metadata_bytes_per_slice = 2048;
constexpr std::int64_t alignment_bytes_per_slice = 4096;
constexpr std::int64_t metadata_base_bytes = 16 << 10;
constexpr std::int64_t store_every_bytes = std::int64_t{64} << 20;

// A dataset of the file that is being written.
struct Placed {
  const TensorSlice* slice = nullptr;
  std::string dataset;
  std::int64_t offset = 0;
};

void check_slice_to_write(const TensorSlice& slice) {
  const parallel::ShardSpec& box = slice.extent.box;
  ATHANOR_CHECK(slice.data != nullptr && slice.extent.first >= 0 && slice.extent.count > 0 &&
                    slice.extent.first <= box.local_numel() - slice.extent.count,
                "slice of {} has elements [{}, +{}) of a box of {}", slice.name, slice.extent.first,
                slice.extent.count, box.local_numel());
}

void write_slice_attributes(const detail::Hdf5Handle& dataset, const TensorSlice& slice) {
  detail::write_attribute(dataset.id(), "global_shape", slice.extent.box.global_shape);
  detail::write_attribute(dataset.id(), "offset", slice.extent.box.offset);
  detail::write_attribute(dataset.id(), "shape", slice.extent.box.local_shape);
  detail::write_attribute(dataset.id(), "first", slice.extent.first);
  detail::write_attribute(dataset.id(), "count", slice.extent.count);
  detail::write_attribute(dataset.id(), "dtype", std::string(element_type_name(slice.type)));
}

Placed place_slice(const detail::Hdf5Handle& file, const TensorSlice& slice, std::string name) {
  const detail::Hdf5Handle type = detail::hdf5_type(slice.type);
  const detail::Hdf5Handle space = detail::simple_space({slice.extent.count});
  const detail::Hdf5Handle link = detail::link_with_groups();
  const detail::Hdf5Handle layout = detail::contiguous_layout();
  detail::Hdf5Handle dataset(
      H5Dcreate2(file.id(), name.c_str(), type.id(), space.id(), link.id(), layout.id(), H5P_DEFAULT),
      H5Dclose, "create a dataset");
  write_slice_attributes(dataset, slice);
  const std::int64_t offset = detail::data_offset(dataset);
  dataset.close("close a dataset");
  return {&slice, std::move(name), offset};
}

// Everything of the file but the payload.
std::vector<Placed> lay_out(const std::string& path, const ShardIdentity& identity,
                            const std::vector<TensorSlice>& slices) {
  const auto stored = static_cast<std::int64_t>(slices.size());
  detail::Hdf5Handle file = detail::create_hdf5_file(
      path, std::min(stored * metadata_bytes_per_slice + metadata_base_bytes, std::int64_t{1} << 20));
  detail::write_attribute(file.id(), "format", std::string(format_name));
  detail::write_attribute(file.id(), "format_version", std::int64_t{format_version});
  detail::write_attribute(file.id(), "run_id", identity.run_id);
  detail::write_attribute(file.id(), "step", identity.step);
  detail::write_attribute(file.id(), "rank", std::int64_t{identity.rank});
  std::map<std::string, int> parts;
  std::vector<Placed> placed;
  for (const TensorSlice& slice : slices) {
    if (slice.extent.count > 0) {
      check_slice_to_write(slice);
      placed.push_back(place_slice(file, slice, fmt::format("{}/{}", slice.name, parts[slice.name]++)));
    }
  }
  file.close("close the file");
  return placed;
}

std::vector<std::uint64_t> write_payload(const detail::PayloadFile& file, const Placed& placed) {
  const auto* data = static_cast<const std::byte*>(placed.slice->data);
  const std::int64_t bytes = placed.slice->bytes();
  std::vector<std::uint64_t> checksums;
  for (std::int64_t done = 0; done < bytes; done += checksum_block_bytes) {
    checksums.push_back(
        file.write(data + done, std::min(checksum_block_bytes, bytes - done), placed.offset + done));
  }
  return checksums;
}

WrittenShard write_file(const std::string& path, const std::string& name, const ShardIdentity& identity,
                        const std::vector<TensorSlice>& slices) {
  const std::vector<Placed> placed = lay_out(path, identity, slices);
  detail::PayloadFile file = detail::PayloadFile::open_for_writing(path);
  WrittenShard written;
  written.file = {name, file.bytes(), identity.rank};
  file.reserve(written.file.bytes);
  std::int64_t unstored_begin = 0;
  for (const Placed& entry : placed) {
    written.slices.push_back(
        {entry.slice->name, name, entry.dataset, entry.slice->extent, write_payload(file, entry)});
    const std::int64_t end = entry.offset + entry.slice->bytes();
    if (end - unstored_begin >= store_every_bytes) {
      file.begin_storing(unstored_begin, end - unstored_begin);
      unstored_begin = end;
    }
  }
  file.finish();
  return written;
}

void check_space(const std::string& folder, const std::string& path, const std::vector<TensorSlice>& slices) {
  const std::int64_t needed = estimate_shard_bytes(slices);
  const std::int64_t free = detail::free_bytes(folder);
  if (free < needed) {
    throw base::IoError(
        "cannot write {} ({} bytes are needed, {} are free) free space or keep fewer checkpoints", path,
        needed, free);
  }
}

// Maps the boxes of one stored slice into the tensor's virtual dataset.
void map_slice(const detail::Hdf5Handle& layout, const StoredSlice& slice) {
  const detail::Hdf5Handle source = detail::simple_space({slice.extent.count});
  const detail::Hdf5Handle target = detail::simple_space(slice.extent.box.global_shape);
  for (const ExtentBox& box : decompose(slice.extent)) {
    const std::vector<hsize_t> offset(box.offset.begin(), box.offset.end());
    const std::vector<hsize_t> shape(box.shape.begin(), box.shape.end());
    const auto first = static_cast<hsize_t>(box.first);
    const auto count = static_cast<hsize_t>(box.count);
    detail::hdf5_check(
        H5Sselect_hyperslab(target.id(), H5S_SELECT_SET, offset.data(), nullptr, shape.data(), nullptr),
        "select a box");
    detail::hdf5_check(H5Sselect_hyperslab(source.id(), H5S_SELECT_SET, &first, nullptr, &count, nullptr),
                       "select a range");
    detail::hdf5_check(
        H5Pset_virtual(layout.id(), target.id(), slice.file.c_str(), slice.dataset.c_str(), source.id()),
        "map a slice");
  }
}

void write_index_file(const std::string& path, const Manifest& manifest) {
  detail::Hdf5Handle file = detail::create_hdf5_file(path, metadata_base_bytes);
  detail::write_attribute(file.id(), "format", std::string(format_name));
  detail::write_attribute(file.id(), "format_version", std::int64_t{format_version});
  detail::write_attribute(file.id(), "run_id", manifest.run_id);
  detail::write_attribute(file.id(), "step", manifest.step);
  std::map<std::string_view, std::vector<const StoredSlice*>> slices;
  for (const StoredSlice& slice : manifest.slices) {
    slices[slice.tensor].push_back(&slice);
  }
  const detail::Hdf5Handle link = detail::link_with_groups();
  for (const auto& [name, tensor] : manifest.tensors) {
    const detail::Hdf5Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make properties");
    for (const StoredSlice* slice : slices[name]) {
      map_slice(layout, *slice);
    }
    const detail::Hdf5Handle type = detail::hdf5_type(tensor.type);
    const detail::Hdf5Handle space = detail::simple_space(tensor.shape);
    detail::Hdf5Handle dataset(
        H5Dcreate2(file.id(), name.c_str(), type.id(), space.id(), link.id(), layout.id(), H5P_DEFAULT),
        H5Dclose, "create a virtual dataset");
    detail::write_attribute(dataset.id(), "dtype", std::string(element_type_name(tensor.type)));
    dataset.close("close a virtual dataset");
  }
  file.close("close the file");
  detail::fsync_path(path);
}

}  // namespace

std::int64_t estimate_shard_bytes(const std::vector<TensorSlice>& slices) {
  std::int64_t bytes = 2 * metadata_base_bytes;
  for (const TensorSlice& slice : slices) {
    bytes += slice.bytes() + metadata_bytes_per_slice + alignment_bytes_per_slice;
  }
  return bytes;
}

WrittenShard write_shard(const std::string& folder, const ShardIdentity& identity,
                         const std::vector<TensorSlice>& slices) {
  const std::string name = fmt::format("rank-{:05d}.h5", identity.rank);
  const std::string path = folder + "/" + name;
  WrittenShard written;
  run_on_io_thread([&] {
    check_space(folder, path, slices);
    detail::write_new_hdf5(path, [&] { written = write_file(path, name, identity, slices); });
  });
  return written;
}

void write_index(const std::string& folder, const Manifest& manifest) {
  const std::string path = folder + "/index.h5";
  run_on_io_thread([&] { detail::write_new_hdf5(path, [&] { write_index_file(path, manifest); }); });
}

}  // namespace athanor::checkpoint
