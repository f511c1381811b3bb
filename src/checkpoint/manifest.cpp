#include "checkpoint/manifest.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.hpp"
#include "checkpoint/detail/json_fields.hpp"
#include "checkpoint/detail/manifest_checks.hpp"

namespace athanor::checkpoint {
namespace {

using nlohmann::json;
namespace fields = detail::json_fields;

constexpr int max_rank = std::numeric_limits<int>::max();
constexpr int max_json_depth = 64;

json slice_to_json(const StoredSlice& slice) {
  json checksums = json::array();
  for (const std::uint64_t checksum : slice.checksums) {
    checksums.push_back(fmt::format("{:016x}", checksum));
  }
  return {{"tensor", slice.tensor},
          {"file", slice.file},
          {"dataset", slice.dataset},
          {"global_shape", slice.extent.box.global_shape},
          {"offset", slice.extent.box.offset},
          {"shape", slice.extent.box.local_shape},
          {"first", slice.extent.first},
          {"count", slice.extent.count},
          {"checksums", std::move(checksums)}};
}

StoredSlice slice_from_json(const json& value, std::size_t index) {
  const std::string where = fmt::format("slice {} of the manifest", index);
  StoredSlice slice;
  slice.tensor = fields::text(value, "tensor", where);
  slice.file = fields::text(value, "file", where);
  slice.dataset = fields::text(value, "dataset", where);
  slice.extent.box.global_shape = fields::extents(value, "global_shape", where);
  slice.extent.box.offset = fields::extents(value, "offset", where);
  slice.extent.box.local_shape = fields::extents(value, "shape", where);
  slice.extent.first = fields::integer(value, "first", where);
  slice.extent.count = fields::integer(value, "count", where);
  slice.checksums = fields::hashes(value, "checksums", where);
  return slice;
}

void read_format(const json& value, Manifest& manifest) {
  const std::string where = "the manifest";
  if (fields::text(value, "format", where) != format_name) {
    throw base::CheckpointError("the manifest is of format '{}' ({} is expected) use a checkpoint of athanor",
                                fields::text(value, "format", where), format_name);
  }
  manifest.version = static_cast<int>(fields::integer(value, "format_version", where, 1, max_rank));
  if (manifest.version > format_version) {
    throw base::CheckpointError(
        "the checkpoint has format version {} (this program reads up to {}) use a newer athanor",
        manifest.version, format_version);
  }
  const std::int64_t block = fields::integer(value, "checksum_block_bytes", where, 1);
  if (block != checksum_block_bytes) {
    throw base::CheckpointError(
        "the manifest's checksum_block_bytes is {} (format version {} has {}) use another checkpoint", block,
        manifest.version, checksum_block_bytes);
  }
}

void read_lists(const json& value, Manifest& manifest) {
  const std::string where = "the manifest";
  for (const json& entry : fields::array(value, "roles", where)) {
    const std::string role = fmt::format("role {} of the manifest", manifest.roles.size());
    manifest.roles.push_back({fields::text(entry, "name", role), fields::text(entry, "kind", role),
                              fields::member(entry, "layout", role), fields::member(entry, "state", role)});
  }
  for (const json& entry : fields::array(value, "files", where)) {
    const std::string file = fmt::format("file {} of the manifest", manifest.files.size());
    manifest.files.push_back({fields::text(entry, "name", file), fields::integer(entry, "bytes", file),
                              static_cast<int>(fields::integer(entry, "rank", file, 0, max_rank))});
  }
  const json& tensors = fields::member(value, "tensors", where);
  if (!tensors.is_object()) {
    throw base::CheckpointError(
        "the manifest: 'tensors' is malformed (an object is expected) use another "
        "checkpoint");
  }
  for (const auto& [name, entry] : tensors.items()) {
    const std::string tensor = fmt::format("tensor '{}' of the manifest", name);
    manifest.tensors[name] = {element_type_from_name(fields::text(entry, "dtype", tensor)),
                              fields::extents(entry, "shape", tensor)};
  }
  manifest.slices = slices_from_json(fields::array(value, "slices", where));
}

}  // namespace

const StoredRole* Manifest::find_role(const std::string& name) const {
  const auto found = std::ranges::find(roles, name, &StoredRole::name);
  return found == roles.end() ? nullptr : &*found;
}

std::int64_t Manifest::payload_bytes() const {
  std::int64_t bytes = 0;
  for (const StoredSlice& slice : slices) {
    bytes += slice.extent.count * element_bytes(tensors.at(slice.tensor).type);
  }
  return bytes;
}

json to_json(const Manifest& manifest) {
  json roles = json::array();
  for (const StoredRole& role : manifest.roles) {
    roles.push_back(
        {{"name", role.name}, {"kind", role.kind}, {"layout", role.layout}, {"state", role.state}});
  }
  json files = json::array();
  for (const StoredFile& file : manifest.files) {
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"rank", file.rank}});
  }
  json tensors = json::object();
  for (const auto& [name, tensor] : manifest.tensors) {
    tensors[name] = {{"dtype", element_type_name(tensor.type)}, {"shape", tensor.shape}};
  }
  return {{"format", format_name},
          {"format_version", manifest.version},
          {"run_id", manifest.run_id},
          {"step", manifest.step},
          {"created", manifest.created},
          {"program", manifest.program},
          {"world_size", manifest.world_size},
          {"checksum_block_bytes", checksum_block_bytes},
          {"config", manifest.config},
          {"data", manifest.data},
          {"roles", std::move(roles)},
          {"files", std::move(files)},
          {"tensors", std::move(tensors)},
          {"slices", slices_to_json(manifest.slices)}};
}

Manifest manifest_from_json(const json& value) {
  const std::string where = "the manifest";
  Manifest manifest;
  read_format(value, manifest);
  manifest.run_id = fields::text(value, "run_id", where);
  manifest.step = fields::integer(value, "step", where);
  manifest.created = fields::text(value, "created", where);
  manifest.program = fields::text(value, "program", where);
  manifest.world_size = static_cast<int>(fields::integer(value, "world_size", where, 1, max_rank));
  manifest.config = fields::text(value, "config", where);
  manifest.data = fields::member(value, "data", where);
  read_lists(value, manifest);
  detail::check_manifest(manifest);
  return manifest;
}

Manifest manifest_from_text(const std::string& text) {
  // Deeply nested text would exhaust the stack when the value is copied.
  const auto check_depth = [](int depth, json::parse_event_t /*event*/, json& /*value*/) {
    if (depth > max_json_depth) {
      throw base::CheckpointError(
          "the manifest is nested deeper than {} levels (none is written so) use an older checkpoint",
          max_json_depth);
    }
    return true;
  };
  try {
    return manifest_from_json(json::parse(text, check_depth));
  } catch (const json::exception& error) {
    throw base::CheckpointError("the manifest is not JSON ({}) use an older checkpoint", error.what());
  }
}

json slices_to_json(const std::vector<StoredSlice>& slices) {
  json result = json::array();
  for (const StoredSlice& slice : slices) {
    result.push_back(slice_to_json(slice));
  }
  return result;
}

std::vector<StoredSlice> slices_from_json(const json& value) {
  if (!value.is_array()) {
    throw base::CheckpointError(
        "the manifest: 'slices' is malformed (a list is expected) use another "
        "checkpoint");
  }
  std::vector<StoredSlice> slices;
  for (const json& entry : value) {
    slices.push_back(slice_from_json(entry, slices.size()));
  }
  return slices;
}

}  // namespace athanor::checkpoint
