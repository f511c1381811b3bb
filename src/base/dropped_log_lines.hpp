// What the log could not write.
#pragma once

#include <cstdint>

namespace athanor::base {

/// Lines of this process that stderr or the log file did not take (a full disk): they are lost, nothing else
/// is. The first of them is told of on stderr.
std::int64_t dropped_log_lines();

}  // namespace athanor::base
