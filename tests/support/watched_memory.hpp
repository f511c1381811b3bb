// Tells a test of every tensor's memory that is given back.
#pragma once

#include <cstddef>
#include <functional>

namespace athanor::tests {

/// From now on new CPU tensors take their memory from an allocator that reports when it is freed. For the
/// rest of the process.
void watch_tensor_memory();

/// Who is told, from any thread; empty: nobody.
void set_memory_listener(std::function<void(const void* data, std::size_t bytes)> listener);

}  // namespace athanor::tests
