// Exact count of the bytes handed to the network for other ranks, by purpose.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

namespace athanor::parallel {

/// What bytes on the wire were for.
enum class Traffic { dispatch, combine, grad_dense, grad_expert, param_gather, link, other };

inline constexpr int num_traffic_kinds = 7;
/// The purposes' names as metrics spell them, in the order of Traffic.
inline constexpr std::array<std::string_view, num_traffic_kinds> traffic_names = {
    "dispatch", "combine", "grad_dense", "grad_expert", "param_gather", "link", "other"};

/// What a rounded wire format could not carry, counted where it was rounded.
struct WireLosses {
  std::int64_t underflow = 0;  ///< numbers other than zero that became zero
  std::int64_t nonfinite = 0;  ///< blocks with a NaN or an infinity, which arrive as NaN
};

/// Bytes sent by this rank to other ranks since construction or reset (self part excluded; an all-reduce
/// counts as its reduce-scatter and all-gather). One instance is shared by a world communicator and
/// everything split from it.
class TrafficCounters {
 public:
  void add(Traffic kind, std::int64_t bytes) { bytes_[static_cast<std::size_t>(kind)] += bytes; }
  std::int64_t bytes(Traffic kind) const { return bytes_[static_cast<std::size_t>(kind)]; }
  const std::array<std::int64_t, num_traffic_kinds>& all() const { return bytes_; }
  void add_seconds(Traffic kind, double seconds) { seconds_[static_cast<std::size_t>(kind)] += seconds; }
  /// Time this rank spent in collectives of a purpose, waiting included.
  double seconds(Traffic kind) const { return seconds_[static_cast<std::size_t>(kind)]; }
  void add_losses(const WireLosses& losses) {
    losses_.underflow += losses.underflow;
    losses_.nonfinite += losses.nonfinite;
  }
  const WireLosses& losses() const { return losses_; }
  void reset() {
    bytes_.fill(0);
    seconds_.fill(0.0);
    losses_ = {};
  }

 private:
  std::array<std::int64_t, num_traffic_kinds> bytes_{};
  std::array<double, num_traffic_kinds> seconds_{};
  WireLosses losses_;
};

/// One collective: counts its bytes now and its seconds when it goes out of scope.
class TrafficScope {
 public:
  TrafficScope(TrafficCounters& counters, Traffic kind, std::int64_t bytes)
      : counters_(counters), kind_(kind) {
    counters_.add(kind, bytes);
  }
  ~TrafficScope() {
    counters_.add_seconds(kind_,
                          std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count());
  }
  TrafficScope(const TrafficScope&) = delete;
  TrafficScope& operator=(const TrafficScope&) = delete;

 private:
  TrafficCounters& counters_;
  Traffic kind_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace athanor::parallel
