#include "checkpoint/detail/complete_marker.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/error.hpp"

namespace athanor::checkpoint::detail {

std::string complete_marker_text(std::string_view manifest_bytes) {
  const XXH128_hash_t digest = XXH3_128bits(manifest_bytes.data(), manifest_bytes.size());
  return fmt::format("xxh3-128 {:016x}{:016x} {} {}\n", digest.high64, digest.low64, manifest_bytes.size(),
                     manifest_file_name);
}

void check_complete_marker(std::string_view marker, std::string_view manifest_bytes,
                           const std::string& folder) {
  const std::string expected = complete_marker_text(manifest_bytes);
  if (marker == expected) {
    return;
  }
  if (marker.size() < expected.size() / 2 || !marker.starts_with("xxh3-128 ")) {
    throw base::CheckpointError("{}: {} is damaged (it does not begin as one) use an older checkpoint",
                                folder, complete_file_name);
  }
  throw base::CheckpointError(
      "{}: {} does not fit {} ({} bytes of other content: one of the two is damaged) use an older checkpoint",
      folder, complete_file_name, manifest_file_name, manifest_bytes.size());
}

}  // namespace athanor::checkpoint::detail
