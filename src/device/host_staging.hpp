// Large copies between a device and the host, piece by piece through pinned memory.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

#include "device/memory.hpp"
#include "device/stream.hpp"

namespace athanor::device {

struct HostStagingOptions {
  std::size_t slot_bytes = std::size_t{16} << 20;  ///< size of a piece
  int slots = 2;  ///< pieces in flight; 2 lets the device copy one while the host works on the other
};

/// Carries memory between a device and a consumer or producer on the host, while the next piece is being
/// copied. For checkpoints and for a link without direct device transfers. Owned by one thread.
class HostStaging {
 public:
  /// Throws ConfigError unless there are 2 slots or more of at least a byte.
  explicit HostStaging(const HostStagingOptions& options = {});

  /// Hands `bytes` of device memory to `consume(offset, piece)`, in order, on this thread. Copies start after
  /// what `stream` has queued so far. On return all of it is consumed; only this stream was waited for.
  using Consumer = std::function<void(std::size_t offset, std::span<const std::byte> piece)>;
  void to_host(const void* device, std::size_t bytes, const Stream& stream, const Consumer& consume);

  /// Fills `bytes` of device memory with what `produce(offset, piece)` writes, in order, on this thread. On
  /// return the last copies may still be under way: order later work by `stream`.
  using Producer = std::function<void(std::size_t offset, std::span<std::byte> piece)>;
  void to_device(void* device, std::size_t bytes, const Stream& stream, const Producer& produce);

 private:
  struct Slot {
    PinnedBuffer buffer;
    Event copied;
    bool busy = false;  // a copy into or out of it may be under way
  };
  Slot& free_slot(std::size_t piece);
  std::size_t slot_bytes_;
  std::vector<Slot> slots_;
};

}  // namespace athanor::device
