#include "checkpoint/detail/manifest_checks.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "base/error.hpp"

namespace athanor::checkpoint::detail {
namespace {

constexpr std::size_t max_dimensions = 32;

std::int64_t blocks_of(std::int64_t bytes) {
  return (bytes + checksum_block_bytes - 1) / checksum_block_bytes;
}

struct NamedBox {
  ExtentBox box;
  const StoredSlice* slice = nullptr;
};

bool overlap(const ExtentBox& a, const ExtentBox& b) {
  for (std::size_t d = 0; d < a.shape.size(); ++d) {
    if (a.offset[d] + a.shape[d] <= b.offset[d] || b.offset[d] + b.shape[d] <= a.offset[d]) {
      return false;
    }
  }
  return true;
}

// The dimension along which the boxes begin at the most different places.
std::size_t sweep_dimension(const std::vector<NamedBox>& boxes) {
  std::size_t best = 0;
  std::size_t best_starts = 0;
  for (std::size_t d = 0; d < boxes.front().box.offset.size(); ++d) {
    std::set<std::int64_t> starts;
    for (const NamedBox& entry : boxes) {
      starts.insert(entry.box.offset[d]);
    }
    if (starts.size() > best_starts) {
      best_starts = starts.size();
      best = d;
    }
  }
  return best;
}

// Sweeps along one dimension and compares only boxes that are open at the same time.
void check_disjoint(const std::string& tensor, std::vector<NamedBox> boxes) {
  if (boxes.empty()) {
    return;
  }
  const std::size_t dim = sweep_dimension(boxes);
  std::ranges::sort(boxes, {}, [dim](const NamedBox& entry) { return entry.box.offset[dim]; });
  std::vector<const NamedBox*> open;
  for (const NamedBox& entry : boxes) {
    std::erase_if(open, [&](const NamedBox* earlier) {
      return earlier->box.offset[dim] + earlier->box.shape[dim] <= entry.box.offset[dim];
    });
    for (const NamedBox* earlier : open) {
      if (overlap(earlier->box, entry.box)) {
        throw base::CheckpointError(
            "tensor {}: slices {} in {} and {} in {} overlap (each element must be stored once) use another "
            "checkpoint",
            tensor, earlier->slice->dataset, earlier->slice->file, entry.slice->dataset, entry.slice->file);
      }
    }
    open.push_back(&entry);
  }
}

void check_coverage(const std::string& name, const StoredTensor& tensor,
                    const std::vector<const StoredSlice*>& slices) {
  const std::int64_t numel = checked_numel(tensor.shape, "tensor " + name);
  std::int64_t stored = 0;
  std::vector<NamedBox> boxes;
  for (const StoredSlice* slice : slices) {
    if (slice->extent.box.global_shape != tensor.shape) {
      throw base::CheckpointError(
          "tensor {}: slice {} in {} is of shape [{}] (the tensor's is [{}]) use another checkpoint", name,
          slice->dataset, slice->file, fmt::join(slice->extent.box.global_shape, ", "),
          fmt::join(tensor.shape, ", "));
    }
    check_slice(*slice, tensor.type);
    if (slice->extent.count > numel - stored) {
      throw base::CheckpointError(
          "tensor {}: its slices hold more than its {} elements (some overlap) use another checkpoint", name,
          numel);
    }
    stored += slice->extent.count;
    for (ExtentBox& box : decompose(slice->extent)) {
      boxes.push_back({std::move(box), slice});
    }
  }
  if (stored != numel) {
    throw base::CheckpointError(
        "tensor {}: {} of its {} elements are stored (slices are missing) use another checkpoint", name,
        stored, numel);
  }
  check_disjoint(name, std::move(boxes));
}

// Names are unique, and the payload fits the files' sizes.
void check_files(const Manifest& manifest) {
  std::map<std::string_view, std::int64_t> room;
  for (const StoredFile& file : manifest.files) {
    check_file_name(file.name);
    if (!room.emplace(file.name, file.bytes).second) {
      throw base::CheckpointError("file {} is listed twice (each has one entry) use another checkpoint",
                                  file.name);
    }
  }
  std::set<std::pair<std::string_view, std::string_view>> datasets;
  for (const StoredSlice& slice : manifest.slices) {
    const auto file = room.find(slice.file);
    if (file == room.end()) {
      throw base::CheckpointError(
          "tensor {}: a slice is in file '{}' (which the manifest does not list) use another checkpoint",
          slice.tensor, slice.file);
    }
    const auto tensor = manifest.tensors.find(slice.tensor);
    if (tensor == manifest.tensors.end()) {
      throw base::CheckpointError(
          "file {}: a slice of tensor '{}' (which the manifest does not list) use "
          "another checkpoint",
          slice.file, slice.tensor);
    }
    const std::int64_t width = element_bytes(tensor->second.type);
    if (slice.extent.count > file->second / width) {
      throw base::CheckpointError(
          "tensor {}: slice {} does not fit in {} (of {} bytes) use another checkpoint", slice.tensor,
          slice.dataset, slice.file, file->second);
    }
    file->second -= slice.extent.count * width;
    if (!datasets.emplace(slice.file, slice.dataset).second) {
      throw base::CheckpointError(
          "tensor {}: dataset {} of {} is listed twice (each is one slice) use "
          "another checkpoint",
          slice.tensor, slice.dataset, slice.file);
    }
  }
}

}  // namespace

void check_tensor_name(const std::string& name) {
  std::string_view rest = name;
  bool good = rest.find('\0') == std::string_view::npos && rest.size() <= 4096;
  while (good) {
    const std::size_t end = rest.find('/');
    const std::string_view part = rest.substr(0, end);
    good = !part.empty() && part != "." && part != "..";
    if (end == std::string_view::npos) {
      break;
    }
    rest.remove_prefix(end + 1);
  }
  if (!good) {
    throw base::CheckpointError(
        "'{}' is no tensor or dataset name (parts between slashes must not be empty, '.' or '..') use "
        "another "
        "checkpoint",
        name);
  }
}

void check_file_name(const std::string& name) {
  if (name.empty() || name.size() > 255 || name.front() == '.' || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    throw base::CheckpointError(
        "'{}' is no name of a file in the checkpoint's folder (no slash, no leading dot) use another "
        "checkpoint",
        name);
  }
}

std::int64_t checked_numel(const std::vector<std::int64_t>& shape, const std::string& where) {
  if (shape.empty() || shape.size() > max_dimensions) {
    throw base::CheckpointError("{}: {} dimensions (1 to {} are possible) use another checkpoint", where,
                                shape.size(), max_dimensions);
  }
  std::int64_t product = 8;  // bytes of the widest element
  bool empty = false;
  for (const std::int64_t extent : shape) {
    empty = empty || extent == 0;
    if (extent < 0 || __builtin_mul_overflow(product, std::max<std::int64_t>(extent, 1), &product)) {
      throw base::CheckpointError(
          "{}: shape [{}] is impossible (too large, or negative) use another "
          "checkpoint",
          where, fmt::join(shape, ", "));
    }
  }
  return empty ? 0 : product / 8;
}

void check_slice(const StoredSlice& slice, ElementType type) {
  const parallel::ShardSpec& box = slice.extent.box;
  const std::string where = fmt::format("tensor {}, slice {} in {}", slice.tensor, slice.dataset, slice.file);
  bool inside =
      box.offset.size() == box.global_shape.size() && box.local_shape.size() == box.global_shape.size();
  for (std::size_t d = 0; inside && d < box.offset.size(); ++d) {
    inside = box.offset[d] >= 0 && box.local_shape[d] >= 0 && box.offset[d] <= box.global_shape[d] &&
             box.local_shape[d] <= box.global_shape[d] - box.offset[d];
  }
  if (!inside) {
    throw base::CheckpointError(
        "{}: box at [{}] of [{}] lies outside the tensor's shape [{}] (the manifest is wrong) use another "
        "checkpoint",
        where, fmt::join(box.offset, ", "), fmt::join(box.local_shape, ", "),
        fmt::join(box.global_shape, ", "));
  }
  const std::int64_t numel = checked_numel(box.local_shape, where);
  if (slice.extent.count < 1 || slice.extent.first < 0 || slice.extent.first > numel ||
      slice.extent.count > numel - slice.extent.first) {
    throw base::CheckpointError(
        "{}: {} elements from {} (its box has {}; at least one is stored) use another checkpoint", where,
        slice.extent.count, slice.extent.first, numel);
  }
  const std::int64_t blocks = blocks_of(slice.extent.count * element_bytes(type));
  if (static_cast<std::int64_t>(slice.checksums.size()) != blocks) {
    throw base::CheckpointError("{}: {} checksums for {} blocks (one each) use another checkpoint", where,
                                slice.checksums.size(), blocks);
  }
}

void check_manifest(const Manifest& manifest) {
  check_files(manifest);
  std::map<std::string_view, std::vector<const StoredSlice*>> slices_of;
  for (const StoredSlice& slice : manifest.slices) {
    check_tensor_name(slice.dataset);
    slices_of[slice.tensor].push_back(&slice);
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    check_tensor_name(name);
    check_coverage(name, tensor, slices_of[name]);
  }
}

}  // namespace athanor::checkpoint::detail
