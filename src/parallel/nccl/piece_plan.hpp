// Which pieces of an exchange go into which NCCL group; arithmetic only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace athanor::parallel {

struct Piece {
  enum class Direction { send, receive };
  Direction direction = Direction::send;
  int peer = 0;
  std::int64_t first = 0;  ///< byte of the peer's part
  std::int64_t bytes = 0;

  bool operator==(const Piece&) const = default;
};

struct PieceLimits {
  int operations = 0;      ///< of a group, at least 2
  std::int64_t bytes = 0;  ///< of a piece, at least 1
};

/// The groups of this rank in order, none empty; send_bytes[r] go to rank r, receive_bytes[r] come from it;
/// the entries of `rank` are not looked at. A piece and its counterpart on the other rank lie in groups that
/// both reach after the same earlier ones, whatever the sizes elsewhere, so groups that wait for their
/// counterparts never wait in a circle: piece number p between two ranks that are s apart is in group (p, s /
/// steps per group) of both.
std::vector<std::vector<Piece>> plan_pieces(int rank, std::span<const std::int64_t> send_bytes,
                                            std::span<const std::int64_t> receive_bytes,
                                            const PieceLimits& limits);

}  // namespace athanor::parallel
