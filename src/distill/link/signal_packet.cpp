#include "distill/link/signal_packet.hpp"

#include <bit>
#include <cstring>
#include <string>
#include <type_traits>

#include "base/error.hpp"
#include "base/hash.hpp"

namespace athanor::distill {
namespace {

static_assert(std::endian::native == std::endian::little, "packets are written as they lie in memory");

constexpr std::uint64_t packet_magic = 0x31474953'4e485441;  // "ATHNSIG1"
constexpr std::size_t checksum_offset = 8;

// Reads and writes the fields one after the other.
template <typename Byte>
class Cursor {
 public:
  explicit Cursor(Byte* at) : at_(at) {}
  template <typename Value>
  void field(Value& value) {
    if constexpr (std::is_const_v<Byte>) {
      std::memcpy(&value, at_, sizeof(Value));
    } else {
      std::memcpy(at_, &value, sizeof(Value));
    }
    at_ += sizeof(Value);
  }

 private:
  Byte* at_;
};

// The one list of the header's fields, for both directions.
template <typename Byte>
void visit_header(Cursor<Byte> cursor, std::uint64_t& magic, std::uint64_t& checksum, PacketHeader& header) {
  cursor.field(magic);
  cursor.field(checksum);
  cursor.field(header.step);
  cursor.field(header.teacher_version);
  cursor.field(header.first_sample_id);
  cursor.field(header.row_count);
  cursor.field(header.token_hash);
  cursor.field(header.payload_bytes);
  cursor.field(header.piece);
  cursor.field(header.sender);
  cursor.field(header.receiver);
  cursor.field(header.control);
  cursor.field(header.outcome);
}

void write_checksum(parallel::ByteBuffer& packet, std::uint64_t checksum) {
  std::memcpy(packet.data() + checksum_offset, &checksum, sizeof(checksum));
}

[[noreturn]] void refuse(const ExpectedPacket& expected, const std::string& why) {
  throw base::CommError(
      "bad packet {} of step {} from teacher rank {} to student rank {} ({}) both must run the same program "
      "and config; if they do, check network and memory of both hosts and resume from the last checkpoint",
      expected.piece, expected.step, expected.sender, expected.receiver, why);
}

void check_identity(const ExpectedPacket& expected, const PacketHeader& header) {
  if (header.step != expected.step) {
    refuse(expected, fmt::format("it is {}: its step is {}", header.step < expected.step ? "late" : "early",
                                 header.step));
  }
  if (header.piece != expected.piece || header.sender != expected.sender ||
      header.receiver != expected.receiver || header.payload_bytes != expected.payload_bytes) {
    refuse(expected,
           fmt::format("it says packet {} from rank {} to rank {} with {} bytes, {} bytes were expected",
                       header.piece, header.sender, header.receiver, header.payload_bytes,
                       expected.payload_bytes));
  }
  const auto control = static_cast<int>(header.control);
  const auto outcome = static_cast<int>(header.outcome);
  if (control < static_cast<int>(ControlWord::go) || control > static_cast<int>(ControlWord::cut_and_stop) ||
      outcome > static_cast<int>(StepOutcome::skipped)) {
    refuse(expected, fmt::format("control word {} or outcome {} is unknown", control, outcome));
  }
}

}  // namespace

std::uint64_t hash_of_rows(const RowTags& tags, std::int64_t first, std::int64_t count) {
  ATHANOR_CHECK(first >= 0 && count >= 0 && first + count <= std::ssize(tags.token_hashes),
                "rows [{}, {}) of {} tagged ones", first, first + count, tags.token_hashes.size());
  return base::hash_bytes(tags.token_hashes.data() + first,
                          static_cast<std::size_t>(count) * sizeof(std::uint64_t));
}

void seal_packet(const PacketHeader& header, parallel::ByteBuffer& packet) {
  ATHANOR_CHECK(static_cast<std::int64_t>(packet.size()) == packet_header_bytes + header.payload_bytes,
                "a packet of {} bytes with {} of payload", packet.size(), header.payload_bytes);
  std::memset(packet.data(), 0, packet_header_bytes);
  std::uint64_t magic = packet_magic;
  std::uint64_t checksum = 0;
  PacketHeader written = header;
  visit_header(Cursor<std::byte>(packet.data()), magic, checksum, written);
  write_checksum(packet, base::hash_bytes(packet.data(), packet.size()));
}

PacketHeader open_packet(const ExpectedPacket& expected, parallel::ByteBuffer& packet) {
  const auto size = static_cast<std::int64_t>(packet.size());
  const std::int64_t expected_size = packet_header_bytes + expected.payload_bytes;
  if (size < packet_header_bytes) {
    refuse(expected, fmt::format("it has {} bytes instead of {}", size, expected_size));
  }
  std::uint64_t magic = 0;
  std::uint64_t checksum = 0;
  PacketHeader header;
  visit_header(Cursor<const std::byte>(packet.data()), magic, checksum, header);
  if (magic != packet_magic) {
    refuse(expected, "it does not begin as a packet does");
  }
  write_checksum(packet, 0);
  if (base::hash_bytes(packet.data(), packet.size()) != checksum) {
    refuse(expected, "its checksum does not fit its bytes");
  }
  check_identity(expected, header);
  if (size != expected_size) {
    refuse(expected, fmt::format("it has {} bytes instead of {}", size, expected_size));
  }
  return header;
}

}  // namespace athanor::distill
