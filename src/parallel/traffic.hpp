// Exact count of the bytes handed to the network for other ranks, by purpose.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace athanor::parallel {

/// What bytes on the wire were for.
enum class Traffic { dispatch, combine, grad_dense, grad_expert, param_gather, link, other };

inline constexpr int num_traffic_kinds = 7;
/// The purposes' names as metrics spell them, in the order of Traffic.
inline constexpr std::array<std::string_view, num_traffic_kinds> traffic_names = {
    "dispatch", "combine", "grad_dense", "grad_expert", "param_gather", "link", "other"};

/// Bytes sent by this rank to other ranks since construction or reset (self part excluded; an all-reduce counts as
/// its reduce-scatter and all-gather). One instance is shared by a world communicator and everything split from it.
class TrafficCounters {
 public:
  void add(Traffic kind, std::int64_t bytes) { bytes_[static_cast<std::size_t>(kind)] += bytes; }
  std::int64_t bytes(Traffic kind) const { return bytes_[static_cast<std::size_t>(kind)]; }
  const std::array<std::int64_t, num_traffic_kinds>& all() const { return bytes_; }
  void reset() { bytes_.fill(0); }

 private:
  std::array<std::int64_t, num_traffic_kinds> bytes_{};
};

}  // namespace athanor::parallel
