#include "base/memory.hpp"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>

namespace athanor::base {
namespace {

// The value of `key` in a /proc file of "Key:  value kB" lines, in bytes; -1 when absent.
std::int64_t proc_kilobytes(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(key)) {
      return std::stoll(line.substr(key.size())) * 1024;
    }
  }
  return -1;
}

std::int64_t cgroup_headroom_bytes() {
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::ifstream used_file("/sys/fs/cgroup/memory.current");
  std::int64_t limit = 0;
  std::int64_t used = 0;
  if (limit_file >> limit && used_file >> used) {
    return std::max<std::int64_t>(limit - used, 0);
  }
  return std::numeric_limits<std::int64_t>::max();  // "max" or no cgroup v2
}

// What the heap has taken from the kernel, without mapped chunks, in whole pages.
std::int64_t heap_bytes() {
  constexpr std::int64_t page = 4096;
  return static_cast<std::int64_t>(mallinfo2().arena) / page * page;
}

}  // namespace

std::int64_t peak_resident_bytes() {
  return proc_kilobytes("/proc/self/status", "VmHWM:");
}

std::int64_t available_memory_bytes() {
  return std::min(proc_kilobytes("/proc/meminfo", "MemAvailable:"), cgroup_headroom_bytes());
}

void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
}

void use_huge_pages() {
  // The heap of the process is one, and so is what is known of it.
  static std::atomic<char*> advised_end{nullptr};
  if (static_cast<char*>(::sbrk(0)) <= advised_end.load(std::memory_order_relaxed)) {
    return;
  }
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  auto* end = static_cast<char*>(::sbrk(0));
  char* first = advised_end.load(std::memory_order_relaxed);
  if (first == nullptr) {
    first = end - heap_bytes();
  }
  if (first < end) {
    (void)::madvise(first, static_cast<std::size_t>(end - first), MADV_HUGEPAGE);
  }
  advised_end.store(end, std::memory_order_relaxed);
}

}  // namespace athanor::base
