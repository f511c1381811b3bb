// One operation of the NCCL test double: what it reads, sends, gets and writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "parallel/nccl/nccl_api.hpp"

namespace athanor::tests {

enum class OperationKind : std::int32_t {
  point_to_point,
  all_gather,
  all_reduce,
  reduce_scatter,
  broadcast,
  end
};

/// What two ranks must agree on, in front of every message between them.
struct OperationHeader {
  OperationKind kind = OperationKind::point_to_point;
  parallel::NcclType type = parallel::NcclType::uint8;
  parallel::NcclReduction op = parallel::NcclReduction::sum;
  std::int32_t root = -1;
  std::int64_t count = 0;
  std::int64_t number = 0;  ///< of the communicator's operations other than sends and receives

  bool operator==(const OperationHeader&) const = default;
  std::string describe() const;
};

/// Memory of an operation.
struct MemoryRange {
  std::byte* first = nullptr;
  std::size_t bytes = 0;

  bool overlaps(const void* data, std::size_t size) const {
    const auto* other = static_cast<const std::byte*>(data);
    return bytes > 0 && size > 0 && first < other + size && other < first + bytes;
  }
};

/// Which half of a point-to-point operation this rank has; every rank has both of the others.
enum class Half { sends, receives, both };

/// Its three moments on a stream: read() when it starts, the messages, write() when somebody may see the
/// result. Buffers that are null (tensors without memory) are neither read nor written.
class Operation {
 public:
  /// `peer` is that of a send or receive; rank and size are those of the communicator.
  Operation(const OperationHeader& header, Half half, const void* input, void* output, int peer, int rank,
            int size);

  const OperationHeader& header() const { return header_; }
  /// Ranks that this one sends to and gets from.
  std::vector<int> targets() const;
  std::vector<int> sources() const;
  MemoryRange input() const;
  MemoryRange output() const;

  void read();
  /// Fills the output with bytes that are no number.
  void poison_output();
  /// Header and content for a rank.
  std::vector<std::byte> message_for(int target) const;
  void take_message(int source, const std::byte* content, std::size_t bytes);
  void write();

 private:
  OperationHeader header_;
  Half half_;
  const void* input_;
  void* output_;
  int peer_;
  int rank_;
  int size_;
  std::size_t part_bytes_ = 0;  // of one rank
  std::size_t input_bytes_ = 0;
  std::size_t output_bytes_ = 0;
  std::vector<std::byte> read_;
  std::vector<std::vector<std::byte>> arrived_;  // by rank, this one's own included
};

}  // namespace athanor::tests
