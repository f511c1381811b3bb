#include "checkpoint/shard_file.hpp"

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/hdf5_image.hpp"
#include "checkpoint/detail/payload_file.hpp"
#include "checkpoint/io_thread.hpp"

namespace athanor::checkpoint {
namespace {

// Per dataset: its header with attributes, its group, its name, with room to spare.
constexpr std::int64_t metadata_bytes_per_slice = 2048;
constexpr std::int64_t alignment_bytes_per_slice = 4096;
constexpr std::int64_t metadata_base_bytes = 4 << 10;
constexpr std::int64_t max_metadata_block_bytes = 1 << 20;
// Smaller writes are left to the system to store, together.
constexpr std::int64_t store_from_bytes = 1 << 20;

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

Placed place_slice(const detail::Hdf5Image& file, const TensorSlice& slice, std::string name) {
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

void write_file_attributes(const detail::Hdf5Image& file, const std::string& run_id, std::int64_t step) {
  detail::write_attribute(file.id(), "format", std::string(format_name));
  detail::write_attribute(file.id(), "format_version", std::int64_t{format_version});
  detail::write_attribute(file.id(), "run_id", run_id);
  detail::write_attribute(file.id(), "step", step);
}

// Everything of the file but the payload.
std::vector<Placed> lay_out(detail::Hdf5Image& file, const ShardIdentity& identity,
                            const std::vector<TensorSlice>& slices) {
  write_file_attributes(file, identity.run_id, identity.step);
  detail::write_attribute(file.id(), "rank", std::int64_t{identity.rank});
  std::map<std::string, int> parts;
  std::vector<Placed> placed;
  for (const TensorSlice& slice : slices) {
    if (slice.extent.count > 0) {
      check_slice_to_write(slice);
      placed.push_back(place_slice(file, slice, fmt::format("{}/{}", slice.name, parts[slice.name]++)));
    }
  }
  file.close();
  return placed;
}

std::vector<std::uint64_t> write_payload(const detail::PayloadFile& file, const Placed& placed) {
  const auto* data = static_cast<const std::byte*>(placed.slice->data);
  const std::int64_t bytes = placed.slice->bytes();
  std::vector<std::uint64_t> checksums;
  for (std::int64_t done = 0; done < bytes; done += checksum_block_bytes) {
    const std::int64_t block = std::min(checksum_block_bytes, bytes - done);
    checksums.push_back(file.write(data + done, block, placed.offset + done));
    if (block >= store_from_bytes) {
      file.begin_storing(placed.offset + done, block);
    }
  }
  return checksums;
}

WrittenShard write_file(const std::string& folder, const ShardIdentity& identity,
                        const std::vector<TensorSlice>& slices) {
  detail::Hdf5Image image(
      std::min(static_cast<std::int64_t>(slices.size()) * metadata_bytes_per_slice + metadata_base_bytes,
               max_metadata_block_bytes));
  const std::vector<Placed> placed = lay_out(image, identity, slices);
  WrittenShard written;
  written.file = {fmt::format("rank-{:05d}.h5", identity.rank), image.bytes(), identity.rank};
  detail::PayloadFile file = detail::PayloadFile::create(folder + "/" + written.file.name);
  file.reserve(image.bytes());
  image.write_to(file);
  for (const Placed& entry : placed) {
    written.slices.push_back({entry.slice->name, written.file.name, entry.dataset, entry.slice->extent,
                              write_payload(file, entry)});
  }
  file.finish();
  return written;
}

void check_space(const std::string& folder, const std::vector<TensorSlice>& slices) {
  const std::int64_t needed = estimate_shard_bytes(slices);
  const std::int64_t free = detail::free_bytes(folder);
  if (free < needed) {
    throw base::IoError(
        "cannot write into {} ({} bytes are needed, {} are free) free space or keep fewer checkpoints",
        folder, needed, free);
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
  detail::Hdf5Image file(metadata_base_bytes);
  write_file_attributes(file, manifest.run_id, manifest.step);
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
  file.close();
  detail::PayloadFile output = detail::PayloadFile::create(path);
  output.reserve(file.bytes());
  file.write_to(output);
  output.finish();
}

// Runs `write` on the I/O thread. What the HDF5 library refuses has nothing to do with the disk.
void write_on_io_thread(const std::string& folder, const std::function<void()>& write) {
  run_on_io_thread([&] {
    try {
      write();
    } catch (const detail::Hdf5Failure& failure) {
      throw base::IoError("cannot lay out a file for {} ({}) report this", folder, failure.what());
    }
  });
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
  WrittenShard written;
  write_on_io_thread(folder, [&] {
    check_space(folder, slices);
    written = write_file(folder, identity, slices);
  });
  return written;
}

void write_index(const std::string& folder, const Manifest& manifest) {
  write_on_io_thread(folder, [&] { write_index_file(folder + "/index.h5", manifest); });
}

}  // namespace athanor::checkpoint
