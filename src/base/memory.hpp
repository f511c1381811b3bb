// What the operating system says of memory, and the allocator's setting for training.
#pragma once

#include <cstdint>

namespace athanor::base {

/// Largest resident set of this process so far, in bytes (VmHWM).
std::int64_t peak_resident_bytes();
/// Memory the kernel says can be allocated without swapping, in bytes (MemAvailable, capped by the cgroup
/// limit).
std::int64_t available_memory_bytes();
/// Keeps large freed buffers in the process instead of giving them back to the kernel (page faults cost 10 to
/// 15 % of a training step). Call once at start, before the first large allocation.
void keep_freed_memory();
/// Asks the kernel for huge pages for what the heap has grown by since the last call (memory-bound loops lose
/// a tenth to the translation of small pages, more in virtual machines). A few ns when it has not grown; call
/// it after large allocations. From any thread. Nothing happens where the kernel has no huge pages.
void use_huge_pages();

}  // namespace athanor::base
