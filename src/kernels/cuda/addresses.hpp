// Writes operand addresses into device memory.
#pragma once

#include <cstdint>
#include <span>

#include "device/stream_handle.hpp"

namespace athanor::kernels::cuda {

/// addresses[i] = base + offsets[i] bytes. Asynchronous on `stream`; `offsets` is read at once.
void write_addresses(const void* base, std::span<const std::int64_t> offset_bytes, const void** addresses,
                     device::StreamHandle stream);

}  // namespace athanor::kernels::cuda
