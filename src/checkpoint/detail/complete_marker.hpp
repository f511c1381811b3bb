// The file COMPLETE, written last into a checkpoint: it binds the folder to the exact bytes of its manifest.
#pragma once

#include <string>
#include <string_view>

namespace athanor::checkpoint::detail {

inline constexpr const char* complete_file_name = "COMPLETE";
inline constexpr const char* manifest_file_name = "manifest.json";

/// The text of COMPLETE for a manifest of these bytes: "xxh3-128 <32 hex digits> <bytes> manifest.json\n".
std::string complete_marker_text(std::string_view manifest_bytes);

/// Throws CheckpointError, naming `folder` and the reason, unless `marker` is the text of COMPLETE for a
/// manifest of these bytes.
void check_complete_marker(std::string_view marker, std::string_view manifest_bytes,
                           const std::string& folder);

}  // namespace athanor::checkpoint::detail
