// The text of one JSON line.
#pragma once

#include <cstdint>
#include <string>

namespace athanor::data::detail {

/// The string member `field` of the JSON object `line` (well-formed UTF-8). Escapes of lone surrogates, which
/// Python writes, become U+FFFD and are added to `replaced`. Throws DataError beginning with `where` (file
/// and line).
std::string json_text(std::string& line, const std::string& field, const std::string& where,
                      std::int64_t& replaced);

}  // namespace athanor::data::detail
