#include "device/host_staging.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace athanor::device {

HostStaging::HostStaging(const HostStagingOptions& options) : slot_bytes_(options.slot_bytes) {
  if (options.slots < 2 || options.slot_bytes == 0) {
    throw base::ConfigError(
        "host staging with {} slots of {} bytes cannot overlap (it needs 2 slots or more, of a byte or "
        "more): raise them",
        options.slots, options.slot_bytes);
  }
  slots_.resize(static_cast<std::size_t>(options.slots));
  for (Slot& slot : slots_) {
    slot.buffer = PinnedBuffer(slot_bytes_);
  }
}

// The slot of this piece, once the last copy into or out of it is done.
HostStaging::Slot& HostStaging::free_slot(std::size_t piece) {
  Slot& slot = slots_[piece % slots_.size()];
  if (slot.busy) {
    slot.copied.synchronize();
    slot.busy = false;
  }
  return slot;
}

void HostStaging::to_host(const void* device, std::size_t bytes, const Stream& stream,
                          const Consumer& consume) {
  const auto* from = static_cast<const std::byte*>(device);
  const std::size_t pieces = (bytes + slot_bytes_ - 1) / slot_bytes_;
  const auto length = [&](std::size_t piece) { return std::min(slot_bytes_, bytes - piece * slot_bytes_); };
  const auto start = [&](std::size_t piece) {
    Slot& slot = free_slot(piece);
    copy_async(slot.buffer.data(), from + piece * slot_bytes_, length(piece), stream);
    slot.copied.record(stream);
    slot.busy = true;
  };
  for (std::size_t piece = 0; piece < std::min(pieces, slots_.size()); ++piece) {
    start(piece);
  }
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    Slot& slot = free_slot(piece);
    consume(piece * slot_bytes_, slot.buffer.bytes().first(length(piece)));
    if (piece + slots_.size() < pieces) {
      start(piece + slots_.size());
    }
  }
}

void HostStaging::to_device(void* device, std::size_t bytes, const Stream& stream, const Producer& produce) {
  auto* to = static_cast<std::byte*>(device);
  const std::size_t pieces = (bytes + slot_bytes_ - 1) / slot_bytes_;
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    const std::size_t offset = piece * slot_bytes_;
    Slot& slot = free_slot(piece);
    const std::span<std::byte> part = slot.buffer.bytes().first(std::min(slot_bytes_, bytes - offset));
    produce(offset, part);
    copy_async(to + offset, part.data(), part.size(), stream);
    slot.copied.record(stream);
    slot.busy = true;
  }
}

}  // namespace athanor::device
