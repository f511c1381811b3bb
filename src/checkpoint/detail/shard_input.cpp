#include "checkpoint/detail/shard_input.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/error.hpp"
#include "checkpoint/detail/durable_files.hpp"

namespace athanor::checkpoint::detail {
namespace {

Hdf5Handle open_checked(const std::string& path) {
  try {
    return open_hdf5_file(path);
  } catch (const Hdf5Failure& failure) {
    throw base::CheckpointError("{} is damaged ({}) use an older checkpoint", path, failure.what());
  }
}

bool all_zero(const std::byte* data, std::int64_t bytes) {
  return std::all_of(data, data + bytes, [](std::byte value) { return value == std::byte{0}; });
}

}  // namespace

void check_file_size(const std::string& folder, const StoredFile& file) {
  const std::string path = folder + "/" + file.name;
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    throw base::CheckpointError("{} cannot be opened ({}; the manifest lists it) use an older checkpoint",
                                path, reason_of(errno));
  }
  if (!S_ISREG(status.st_mode) || status.st_size != file.bytes) {
    throw base::CheckpointError("{} has {} bytes (the manifest says {}) use an older checkpoint", path,
                                status.st_size, file.bytes);
  }
}

ShardInput::ShardInput(const std::string& folder, const Manifest& manifest, const StoredFile& file)
    : manifest_(manifest), payload_(PayloadFile::open_for_reading(folder + "/" + file.name)) {
  check_file_size(folder, file);
  hdf5_ = open_checked(payload_.path());
  check_identity(manifest, file);
}

void ShardInput::check_identity(const Manifest& manifest, const StoredFile& file) const {
  try {
    const std::string run_id = read_text_attribute(hdf5_.id(), "run_id");
    const std::int64_t step = read_integer_attribute(hdf5_.id(), "step");
    const std::int64_t rank = read_integer_attribute(hdf5_.id(), "rank");
    if (run_id != manifest.run_id || step != manifest.step || rank != file.rank) {
      throw base::CheckpointError(
          "{} is the file of run {}, step {}, rank {} (run {}, step {}, rank {} is expected: files were "
          "exchanged) use an older checkpoint",
          payload_.path(), run_id, step, rank, manifest.run_id, manifest.step, file.rank);
    }
  } catch (const Hdf5Failure& failure) {
    throw base::CheckpointError(
        "{} is damaged (it does not say of which run, step and rank it is: {}) use an "
        "older checkpoint",
        payload_.path(), failure.what());
  }
}

Hdf5Handle ShardInput::open_dataset(const StoredSlice& slice) const {
  return {H5Dopen2(hdf5_.id(), slice.dataset.c_str(), H5P_DEFAULT), H5Dclose, "open a dataset"};
}

std::int64_t ShardInput::locate(const StoredSlice& slice) const {
  const ElementType type = manifest_.tensors.at(slice.tensor).type;
  try {
    const Hdf5Handle dataset = open_dataset(slice);
    const Hdf5Handle stored(H5Dget_type(dataset.id()), H5Tclose, "read a dataset's type");
    const Hdf5Handle space(H5Dget_space(dataset.id()), H5Sclose, "read a dataset's shape");
    const htri_t same_type = H5Tequal(stored.id(), hdf5_type(type).id());
    hdf5_check(same_type, "compare types");
    const std::int64_t count = H5Sget_simple_extent_npoints(space.id());
    const std::int64_t offset = data_offset(dataset);
    if (same_type == 0 || count != slice.extent.count) {
      throw Hdf5Failure(
          fmt::format("{} elements of type {} are expected", slice.extent.count, element_type_name(type)));
    }
    const std::int64_t bytes = count * element_bytes(type);
    if (bytes > payload_.bytes() || offset > payload_.bytes() - bytes) {
      throw Hdf5Failure("its data lie beyond the file's end");
    }
    return offset;
  } catch (const Hdf5Failure& failure) {
    throw base::CheckpointError("{}: dataset {} of tensor {} is damaged ({}) use an older checkpoint",
                                payload_.path(), slice.dataset, slice.tensor, failure.what());
  }
}

void ShardInput::check_attributes(const StoredSlice& slice) const {
  const parallel::ShardSpec& box = slice.extent.box;
  const std::string_view type = element_type_name(manifest_.tensors.at(slice.tensor).type);
  try {
    const Hdf5Handle dataset = open_dataset(slice);
    if (read_list_attribute(dataset.id(), "global_shape") != box.global_shape ||
        read_list_attribute(dataset.id(), "offset") != box.offset ||
        read_list_attribute(dataset.id(), "shape") != box.local_shape ||
        read_integer_attribute(dataset.id(), "first") != slice.extent.first ||
        read_integer_attribute(dataset.id(), "count") != slice.extent.count ||
        read_text_attribute(dataset.id(), "dtype") != type) {
      throw Hdf5Failure("its attributes differ from the manifest");
    }
  } catch (const Hdf5Failure& failure) {
    throw base::CheckpointError("{}: dataset {} of tensor {} is damaged ({}) use an older checkpoint",
                                payload_.path(), slice.dataset, slice.tensor, failure.what());
  }
}

std::int64_t block_count(const StoredSlice& slice) {
  return static_cast<std::int64_t>(slice.checksums.size());
}

SliceBlock block_at(const StoredSlice& slice, ElementType type, std::int64_t index) {
  const std::int64_t block_elements = checksum_block_bytes / element_bytes(type);
  const std::int64_t first = index * block_elements;
  return {index, first, std::min(block_elements, slice.extent.count - first)};
}

void read_block(const PayloadFile& file, const StoredSlice& slice, ElementType type, const SliceBlock& block,
                std::int64_t slice_offset, std::byte* data) {
  const std::int64_t width = element_bytes(type);
  const std::int64_t bytes = block.count * width;
  const std::uint64_t checksum = file.read(data, bytes, slice_offset + block.first * width);
  const std::uint64_t expected = slice.checksums.at(static_cast<std::size_t>(block.index));
  if (checksum != expected) {
    throw base::CheckpointError(
        "tensor {}, slice {} in {}: bytes {} to {} {} (checksum {:016x}, {:016x} was stored) use an older "
        "checkpoint",
        slice.tensor, slice.dataset, file.path(), block.first * width, block.first * width + bytes,
        all_zero(data, bytes) ? "are all zero, a hole in the file" : "are damaged", checksum, expected);
  }
}

void check_finite(const StoredSlice& slice, ElementType type, std::int64_t first, std::int64_t count,
                  const std::byte* data) {
  const std::int64_t found = find_non_finite(type, data, count);
  if (found >= 0) {
    throw base::CheckpointError(
        "tensor {}, slice {} in {}: element {} is not finite (training from it would fail) use an older "
        "checkpoint",
        slice.tensor, slice.dataset, slice.file, first + found);
  }
}

}  // namespace athanor::checkpoint::detail
