#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>

#include "base/error.hpp"
#include "checkpoint/checkpoint_reader.hpp"
#include "checkpoint/detail/durable_files.hpp"
#include "checkpoint/detail/hdf5_handle.hpp"
#include "checkpoint/detail/hdf5_image.hpp"
#include "checkpoint/detail/payload_file.hpp"
#include "checkpoint/io_thread.hpp"

namespace athanor::checkpoint {
namespace {

constexpr std::int64_t metadata_block_bytes = 64 << 10;

std::int64_t numel(const StoredTensor& tensor) {
  return parallel::ShardSpec::whole(tensor.shape).global_numel();
}

// Makes a dataset for each tensor; where its data begin, by name, for those that have any.
std::map<std::string, std::int64_t> lay_out(detail::Hdf5Image& file, const Manifest& manifest) {
  detail::write_attribute(file.id(), "format", std::string("athanor-merged"));
  detail::write_attribute(file.id(), "format_version", std::int64_t{format_version});
  detail::write_attribute(file.id(), "run_id", manifest.run_id);
  detail::write_attribute(file.id(), "step", manifest.step);
  const detail::Hdf5Handle link = detail::link_with_groups();
  const detail::Hdf5Handle layout = detail::contiguous_layout();
  std::map<std::string, std::int64_t> offsets;
  for (const auto& [name, tensor] : manifest.tensors) {
    const detail::Hdf5Handle type = detail::hdf5_type(tensor.type);
    const detail::Hdf5Handle space = detail::simple_space(tensor.shape);
    detail::Hdf5Handle dataset(
        H5Dcreate2(file.id(), name.c_str(), type.id(), space.id(), link.id(), layout.id(), H5P_DEFAULT),
        H5Dclose, "create a dataset");
    detail::write_attribute(dataset.id(), "dtype", std::string(element_type_name(tensor.type)));
    if (numel(tensor) > 0) {
      offsets[name] = detail::data_offset(dataset);
    }
    dataset.close("close a dataset");
  }
  file.close();
  return offsets;
}

void write_merged(const CheckpointReader& reader, const std::string& path) {
  const Manifest& manifest = reader.manifest();
  detail::Hdf5Image image(metadata_block_bytes);
  const std::map<std::string, std::int64_t> offsets = lay_out(image, manifest);
  detail::PayloadFile file = detail::PayloadFile::create(path);
  file.reserve(image.bytes());
  image.write_to(file);
  for (const auto& [name, offset] : offsets) {
    const StoredTensor& tensor = manifest.tensors.at(name);
    const std::int64_t bytes = numel(tensor) * element_bytes(tensor.type);
    const auto values = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(bytes));
    reader.read({{name, tensor.type, SliceExtent::whole_box(parallel::ShardSpec::whole(tensor.shape)),
                  values.get()}});
    static_cast<void>(file.write(values.get(), bytes, offset));
    file.begin_storing(offset, bytes);
  }
  file.finish();
}

}  // namespace

void merge_checkpoint(const CheckpointReader& reader, const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::absolute(path).parent_path();
  std::error_code error;
  if (fs::symlink_status(path, error).type() != fs::file_type::not_found) {
    throw base::CannotCreateError("cannot create {} (it is there already) name a new file", path);
  }
  if (!fs::is_directory(folder, error)) {
    throw base::CannotCreateError("cannot create {} ({} is no folder) make it first", path, folder.string());
  }
  const std::string aside = fmt::format("{}.tmp-{}", path, ::getpid());
  run_on_io_thread([&] {
    try {
      write_merged(reader, aside);
    } catch (const detail::Hdf5Failure& failure) {
      throw base::IoError("cannot lay out {} ({}) report this", path, failure.what());
    }
    try {
      detail::rename_path(aside, path);
    } catch (const base::IoError&) {
      ::unlink(aside.c_str());
      throw;
    }
  });
  detail::fsync_path(folder.string());
}

}  // namespace athanor::checkpoint
