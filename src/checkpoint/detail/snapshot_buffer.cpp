#include "checkpoint/detail/snapshot_buffer.hpp"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace athanor::checkpoint::detail {
namespace {

constexpr std::int64_t run_alignment = 64;
constexpr std::int64_t buffer_alignment = std::int64_t{2} << 20;  // a huge page

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Bytes that are contiguous in live memory and in the buffer.
struct Run {
  const std::byte* source = nullptr;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};

struct Layout {
  std::vector<Run> runs;
  std::vector<std::int64_t> offsets;  // of each slice
  std::int64_t bytes = 0;
};

Layout lay_out(const std::vector<TensorSlice>& slices) {
  Layout layout;
  for (const TensorSlice& slice : slices) {
    const auto* source = static_cast<const std::byte*>(slice.data);
    const std::int64_t bytes = slice.bytes();
    const bool continues =
        !layout.runs.empty() && layout.runs.back().source + layout.runs.back().bytes == source;
    if (bytes > 0 && !continues) {
      // The alignment of the source is kept, for whatever types follow each other in the run.
      const auto misalignment =
          static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(source) % run_alignment);
      layout.runs.push_back({source, round_up(layout.bytes, run_alignment) + misalignment, 0});
      layout.bytes = layout.runs.back().offset;
    }
    layout.offsets.push_back(layout.bytes);
    if (bytes > 0) {
      layout.runs.back().bytes += bytes;
      layout.bytes += bytes;
    }
  }
  return layout;
}

}  // namespace

void SnapshotBuffer::Free::operator()(std::byte* memory) const {
  std::free(memory);
}

std::int64_t SnapshotBuffer::needed_bytes(const std::vector<TensorSlice>& slices) {
  return lay_out(slices).bytes;
}

void SnapshotBuffer::reserve(std::int64_t bytes) {
  if (bytes <= capacity_) {
    return;
  }
  memory_.reset();
  capacity_ = 0;
  const auto rounded = static_cast<std::size_t>(round_up(bytes, buffer_alignment));
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(buffer_alignment, rounded));
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  memory_.reset(memory);
  (void)::madvise(memory, rounded, MADV_HUGEPAGE);  // fewer page faults where the kernel offers it
  std::memset(memory, 0, rounded);
  capacity_ = static_cast<std::int64_t>(rounded);
}

std::vector<TensorSlice> SnapshotBuffer::copy(const std::vector<TensorSlice>& slices) {
  const Layout layout = lay_out(slices);
  reserve(layout.bytes);
  for (const Run& run : layout.runs) {
    std::memcpy(memory_.get() + run.offset, run.source, static_cast<std::size_t>(run.bytes));
  }
  std::vector<TensorSlice> copies = slices;
  for (std::size_t i = 0; i < copies.size(); ++i) {
    copies[i].data = copies[i].bytes() == 0 ? nullptr : memory_.get() + layout.offsets[i];
  }
  return copies;
}

}  // namespace athanor::checkpoint::detail
