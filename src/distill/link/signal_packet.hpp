// The header in front of every packet from a teacher rank to a student rank, and the check of both.
//
// A packet is a header of 80 bytes, little-endian, and a payload. The checksum is XXH3-64 of the whole packet
// with the checksum's own bytes zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel/point_to_point.hpp"

namespace athanor::distill {

/// What every role does after a step; decided by the leading role.
enum class ControlWord : std::uint8_t { go = 1, cut = 2, cut_and_stop = 3 };

/// How the teacher's own step ended. A skipped step had a non-finite loss or gradient.
enum class StepOutcome : std::uint8_t { pending = 0, finite = 1, skipped = 2 };

inline constexpr std::int64_t packet_header_bytes = 80;

/// What a packet says about itself.
struct PacketHeader {
  std::int64_t step = 0;
  std::int64_t teacher_version = 0;  ///< updates the teacher has made before this step
  std::int64_t first_sample_id = 0;  ///< of the rows in the payload
  std::int64_t row_count = 0;        ///< 0: the payload is not of rows
  std::uint64_t token_hash = 0;      ///< of the rows' tokens (hash_of_rows)
  std::int64_t payload_bytes = 0;
  std::int32_t piece = 0;   ///< its number on the route
  std::int32_t sender = 0;  ///< world ranks
  std::int32_t receiver = 0;
  ControlWord control = ControlWord::go;
  StepOutcome outcome = StepOutcome::pending;  ///< trailers only
  bool operator==(const PacketHeader&) const = default;
};

/// Samples and tokens of consecutive rows, by which both ends make sure that they read the same data.
struct RowTags {
  std::int64_t first_sample_id = 0;           ///< global index of the first row in training order
  std::vector<std::uint64_t> token_hashes{};  ///< one a row: base::hash_bytes of its tokens
};

/// One hash of the hashes of `count` rows from `first` on.
std::uint64_t hash_of_rows(const RowTags& tags, std::int64_t first, std::int64_t count);

/// Writes the header, with the checksum of all of it, in front of the payload that is already in place.
void seal_packet(const PacketHeader& header, parallel::ByteBuffer& packet);

/// What the receiver expects of a packet before it sees it.
struct ExpectedPacket {
  std::int64_t step = 0;
  std::int32_t piece = 0;
  std::int32_t sender = 0;
  std::int32_t receiver = 0;
  std::int64_t payload_bytes = 0;
};

/// Reads and checks a packet as it arrived. Throws CommError naming step, sender and receiver when it is too
/// short, damaged, of another kind, or of another step (late, early).
PacketHeader open_packet(const ExpectedPacket& expected, parallel::ByteBuffer& packet);

}  // namespace athanor::distill
