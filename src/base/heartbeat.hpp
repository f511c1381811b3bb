// Where a process is, as it tells others through a small file while its threads may hang: one record of fixed
// size per rank, rewritten whole, with a checksum. Files are opened for each access, so that network file
// systems show them to other nodes.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace athanor::base {

/// A text of fixed size in a record; longer ones lose their end.
template <std::size_t size>
struct FixedText {
  std::array<char, size> bytes{};

  void set(std::string_view text) {
    bytes.fill('\0');
    text.copy(bytes.data(), size - 1);
  }
  std::string_view view() const {
    const std::string_view all(bytes.data(), size);
    return all.substr(0, all.find('\0'));
  }
};

/// What a rank works on; each has a deadline of its own.
enum class WatchedPhase : std::int32_t { start, step, evaluate, save };
inline constexpr int num_watched_phases = 4;
std::string_view phase_name(WatchedPhase phase);

/// Ranks first, first + stride, ...: `count` of them.
struct RankRun {
  std::int32_t first = 0;
  std::int32_t stride = 1;
  std::int32_t count = 0;
};

/// How far a rank is in the collectives of one group.
struct GroupProgress {
  std::uint64_t group = 0;   ///< hash of name and members; 0: none
  std::int64_t number = -1;  ///< of the last collective begun
};

/// All fields are plain bytes; see write_heartbeat.
struct Heartbeat {
  FixedText<64> host;
  FixedText<32> role;
  std::int32_t rank = 0;  ///< in the world
  std::int32_t pid = 0;
  std::uint64_t process_start = 0;  ///< tells a process from a later one of the same number
  std::int64_t beats = 0;           ///< counts up while the process runs
  std::int64_t step = 0;            ///< the last one begun; 0: none
  WatchedPhase phase = WatchedPhase::start;
  FixedText<96> place;                ///< open spans: "forward > experts"
  double stalled_s = 0.0;             ///< since the last progress
  std::uint8_t is_late = 0;           ///< stalled for longer than the phase's soft deadline
  std::uint8_t is_in_collective = 0;  ///< inside the collective below; otherwise it is the last one
  std::uint8_t has_own_deadline = 0;  ///< in a wait that ends by itself
  std::uint8_t members_are_cut = 0;   ///< the group has more members than fit
  FixedText<32> operation;
  FixedText<96> group;
  FixedText<96> file;
  std::int32_t line = 0;
  std::int32_t num_members = 0;  ///< runs
  std::int64_t number = -1;      ///< of that collective in its group; -1: none yet
  std::uint64_t group_id = 0;
  std::array<RankRun, 32> members{};
  std::array<GroupProgress, 48> groups{};  ///< those used last
};

/// Writes a record over the file's first bytes. `job` tells the records of one job from those of earlier
/// ones. Returns 0 or errno; does not throw.
int write_heartbeat(const std::string& path, std::uint64_t job, const Heartbeat& heartbeat) noexcept;
/// The record of this job; nothing when there is none, or none that is whole.
std::optional<Heartbeat> read_heartbeat(const std::string& path, std::uint64_t job) noexcept;

/// State of a process of this machine as the kernel spells it ('R', 'S', 'D', 'T', 'Z', ...), and when it
/// started; nothing when there is no such process.
struct ProcessState {
  char letter = '?';
  std::uint64_t start = 0;  ///< clock ticks since boot
};
std::optional<ProcessState> process_state(std::int32_t pid);

}  // namespace athanor::base
