#include "train/activity_board.hpp"

#include <algorithm>
#include <span>
#include <string_view>

#include "base/hash.hpp"

namespace athanor::train {
namespace {

using base::SpanKind;

// Spans that bring a deadline with them: parallel::PointToPoint::wait_until.
constexpr std::string_view own_deadline_span = "wait for messages";
constexpr std::string_view evaluation_span = "evaluation";
constexpr std::string_view save_span = "checkpoint";

bool is_progress(SpanKind kind) {
  return kind == SpanKind::step || kind == SpanKind::phase || kind == SpanKind::compute ||
         kind == SpanKind::collective;
}

// The file as the repository calls it.
std::string_view short_path(std::string_view path) {
  const std::size_t source = path.rfind("src/");
  return source == std::string_view::npos ? path : path.substr(source + 4);
}

// Members as runs of equal distance, which groups of a grid are.
void put_members(base::Heartbeat& shown, std::span<const int> members) {
  std::size_t runs = 0;
  std::size_t next = 0;
  for (; next < members.size() && runs < shown.members.size(); ++runs) {
    base::RankRun& run = shown.members[runs];
    run = {members[next], 1, 1};
    if (next + 1 < members.size()) {
      run.stride = members[next + 1] - members[next];
    }
    while (next + static_cast<std::size_t>(run.count) < members.size() &&
           members[next + static_cast<std::size_t>(run.count)] == run.first + run.stride * run.count) {
      ++run.count;
    }
    next += static_cast<std::size_t>(run.count);
  }
  shown.num_members = static_cast<std::int32_t>(runs);
  shown.members_are_cut = next < members.size() ? 1 : 0;
}

std::uint64_t group_id(const base::Span& span) {
  const std::uint64_t members = base::hash_bytes(span.members.data(), span.members.size_bytes());
  return std::max<std::uint64_t>(1, members ^ (base::hash_string(span.group) * 3));
}

}  // namespace

void ActivityBoard::note_collective(const base::Span& span) noexcept {
  shown_.is_in_collective = 1;
  shown_.operation.set(span.name);
  shown_.group.set(span.group);
  shown_.file.set(short_path(span.site.file));
  shown_.line = span.site.line;
  shown_.number = span.number;
  const std::uint64_t id = group_id(span);
  if (shown_.group_id != id) {
    shown_.group_id = id;
    put_members(shown_, span.members);
  }
  // The groups used last come first.
  auto& groups = shown_.groups;
  auto place =
      std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.group == id; });
  place = place == groups.end() ? groups.end() - 1 : place;
  std::rotate(groups.begin(), place, place + 1);
  // An exchange may be waited for when later ones have been started.
  const bool is_known = groups.front().group == id;
  groups.front() = {id, is_known ? std::max(groups.front().number, span.number) : span.number};
}

void ActivityBoard::begin(const base::Span& span) noexcept {
  if (!is_followed()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  progress_ += is_progress(span.kind) ? 1 : 0;
  if (span.kind == SpanKind::step) {
    shown_.step = span.number;
  }
  if (span.kind == SpanKind::collective) {
    note_collective(span);
  }
  if (depth_ < max_depth) {
    open_[depth_].kind = span.kind;
    open_[depth_].name.set(span.name);
  }
  ++depth_;
}

void ActivityBoard::end(const base::Span& span) noexcept {
  if (!is_followed()) {
    return;
  }
  const std::lock_guard lock(mutex_);
  progress_ += is_progress(span.kind) ? 1 : 0;
  if (span.kind == SpanKind::collective) {
    shown_.is_in_collective = 0;
  }
  depth_ -= depth_ > 0 ? 1 : 0;  // one may have begun before this followed
}

std::uint64_t ActivityBoard::read(base::Heartbeat& heartbeat) const {
  const std::lock_guard lock(mutex_);
  base::Heartbeat filled = shown_;
  filled.host = heartbeat.host;
  filled.role = heartbeat.role;
  filled.rank = heartbeat.rank;
  filled.pid = heartbeat.pid;
  filled.process_start = heartbeat.process_start;
  filled.beats = heartbeat.beats;
  filled.phase = filled.step > 0 ? base::WatchedPhase::step : base::WatchedPhase::start;
  std::string place;
  for (std::size_t i = 0; i < std::min(depth_, max_depth); ++i) {
    const Open& open = open_[i];
    if (open.kind == SpanKind::collective || open.kind == SpanKind::step) {
      continue;  // told of in fields of their own
    }
    place += place.empty() ? "" : " > ";
    place += open.name.view();
    if (open.kind == SpanKind::phase && open.name.view() == evaluation_span) {
      filled.phase = base::WatchedPhase::evaluate;
    } else if (open.kind == SpanKind::phase && open.name.view() == save_span) {
      filled.phase = base::WatchedPhase::save;
    } else if (open.kind == SpanKind::wait && open.name.view() == own_deadline_span) {
      filled.has_own_deadline = 1;
    }
  }
  filled.place.set(place);
  heartbeat = filled;
  return progress_;
}

}  // namespace athanor::train
