// Checks shared by both builds.
#pragma once

#include "device/memory.hpp"

namespace athanor::device::detail {

/// Throws ConfigError unless the options make sense.
void validate(const MemoryPoolOptions& options);

}  // namespace athanor::device::detail
