#include "train/watchdog_rules.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

namespace athanor::train {
namespace {

using base::Heartbeat;

constexpr double jump_s = 1.0;  // later than this a tick is a jump, also on a busy machine
constexpr std::size_t max_collectives = 8;

bool is_member(const Heartbeat& beat, int rank) {
  for (std::int32_t i = 0; i < beat.num_members; ++i) {
    const base::RankRun& run = beat.members[static_cast<std::size_t>(i)];
    const int offset = rank - run.first;
    const int stride = std::max(run.stride, 1);
    if (offset >= 0 && offset % stride == 0 && offset / stride < run.count) {
      return true;
    }
  }
  return false;
}

// Whether the rank of `sight` has begun the collective that `waiting` is in.
bool has_come(const RankSight& sight, const Heartbeat& waiting) {
  if (!sight.beat) {
    return false;
  }
  const auto& groups = sight.beat->groups;
  return std::any_of(groups.begin(), groups.end(), [&](const base::GroupProgress& group) {
    return group.group == waiting.group_id && group.number >= waiting.number;
  });
}

std::vector<int> missing_from(const std::vector<RankSight>& ranks, const Heartbeat& waiting) {
  std::vector<int> missing;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (is_member(waiting, static_cast<int>(r)) && !has_come(ranks[r], waiting)) {
      missing.push_back(static_cast<int>(r));
    }
  }
  return missing;
}

bool is_silent(const RankSight& sight, double silent_s) {
  return sight.life == ProcessLife::gone || sight.life == ProcessLife::stopped || sight.silent_s >= silent_s;
}

bool is_late(const RankSight& sight) {
  return sight.beat && sight.beat->is_late != 0;
}

bool waits(const RankSight& sight) {
  return sight.beat && sight.beat->is_in_collective != 0;
}

template <typename Predicate>
std::vector<int> ranks_that(const std::vector<RankSight>& ranks, const Predicate& holds) {
  std::vector<int> found;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (holds(ranks[r])) {
      found.push_back(static_cast<int>(r));
    }
  }
  return found;
}

// Ranks that can be expected to go on: those that are not late, and those that wait for one that is expected
// to.
std::vector<bool> expected_to_go_on(const std::vector<RankSight>& ranks) {
  std::vector<bool> goes_on(ranks.size());
  std::vector<std::vector<int>> missing(ranks.size());
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    goes_on[r] = !is_late(ranks[r]);
    if (!goes_on[r] && waits(ranks[r])) {
      missing[r] = missing_from(ranks, *ranks[r].beat);
    }
  }
  for (bool has_changed = true; has_changed;) {
    has_changed = false;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      const bool is_held_up = std::any_of(missing[r].begin(), missing[r].end(),
                                          [&](int m) { return goes_on[static_cast<std::size_t>(m)]; });
      if (!goes_on[r] && is_held_up) {
        goes_on[r] = has_changed = true;
      }
    }
  }
  return goes_on;
}

std::string describe_collective(const Heartbeat& beat) {
  return fmt::format("{} number {} of group {} ({}:{})", beat.operation.view(), beat.number,
                     beat.group.view(), beat.file.view(), beat.line);
}

// Where a rank is, without what differs between ranks that do the same.
std::string describe_place(const RankSight& sight) {
  if (!sight.beat) {
    return "has sent no heartbeat";
  }
  const Heartbeat& beat = *sight.beat;
  std::string text = beat.phase == base::WatchedPhase::start
                         ? "start"
                         : fmt::format("step {}, {}", beat.step, base::phase_name(beat.phase));
  if (!beat.place.view().empty()) {
    text += fmt::format(", {}", beat.place.view());
  }
  if (beat.number >= 0) {
    text +=
        fmt::format(", {} {}", beat.is_in_collective != 0 ? "inside" : "after", describe_collective(beat));
  }
  switch (sight.life) {
    case ProcessLife::gone:
      return text + "; its process is gone";
    case ProcessLife::stopped:
      return text + fmt::format("; its process is stopped (state {})", sight.process_state);
    default:
      return sight.process_state == 'D' ? text + "; its process waits for a device or file (state D)" : text;
  }
}

std::string describe_person(int rank, const RankSight& sight) {
  if (!sight.beat) {
    return fmt::format("rank {}", rank);
  }
  return fmt::format("rank {} ({}, host {}, process {})", rank, sight.beat->role.view(),
                     sight.beat->host.view(), sight.beat->pid);
}

double still_for(const RankSight& sight) {
  return (sight.beat ? sight.beat->stalled_s : 0.0) + sight.silent_s;
}

}  // namespace

void StallClock::tick(double now_s, std::uint64_t progress) {
  const double elapsed_s = last_s_ ? now_s - *last_s_ : 0.0;
  has_jumped_ = elapsed_s > tick_s_ + jump_s;
  elapsed_s_ = has_jumped_ ? 0.0 : std::max(elapsed_s, 0.0);
  const bool is_new = !last_s_ || progress != progress_;
  stalled_s_ = is_new || has_jumped_ ? 0.0 : stalled_s_ + elapsed_s_;
  last_s_ = now_s;
  progress_ = progress;
}

Verdict judge(const std::vector<RankSight>& ranks, int own, double silent_s) {
  std::vector<int> causes =
      ranks_that(ranks, [&](const RankSight& sight) { return is_silent(sight, silent_s); });
  if (causes.empty()) {
    causes = ranks_that(ranks, [](const RankSight& sight) { return is_late(sight) && !waits(sight); });
  }
  const RankSight& self = ranks[static_cast<std::size_t>(own)];
  if (!causes.empty() || !waits(self)) {
    const bool is_hang = !causes.empty();
    return {is_hang, std::move(causes)};
  }
  if (expected_to_go_on(ranks)[static_cast<std::size_t>(own)]) {
    return {};
  }
  causes = missing_from(ranks, *self.beat);
  if (!causes.empty()) {
    return {true, std::move(causes)};
  }
  // All have come: those that are out of it already go on, or are late elsewhere.
  const bool all_late = std::all_of(ranks.begin(), ranks.end(), [&](const RankSight& sight) {
    const int rank = static_cast<int>(&sight - ranks.data());
    return !is_member(*self.beat, rank) || is_late(sight);
  });
  return {all_late, {}};
}

bool somebody_goes_on(const std::vector<RankSight>& ranks, double silent_s, double within_s) {
  return std::any_of(ranks.begin(), ranks.end(), [&](const RankSight& sight) {
    return sight.beat && !is_silent(sight, silent_s) && still_for(sight) < within_s;
  });
}

std::string rank_list(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) {
      ++last;
    }
    text += text.empty() ? "" : ",";
    text += last == i ? fmt::format("{}", ranks[i]) : fmt::format("{}-{}", ranks[i], ranks[last]);
    i = last + 1;
  }
  return text;
}

std::string describe_rank(int rank, const RankSight& sight) {
  return fmt::format("{}: {}, for {:.1f} s", describe_person(rank, sight), describe_place(sight),
                     still_for(sight));
}

std::vector<std::string> describe_ranks(const std::vector<RankSight>& ranks, const Verdict& verdict) {
  std::vector<std::string> lines;
  std::map<std::string, std::vector<int>> places;
  std::map<std::tuple<std::uint64_t, std::int64_t>, std::vector<int>> collectives;
  double longest_s = 0.0;
  for (const RankSight& sight : ranks) {
    longest_s = std::max(longest_s, still_for(sight));
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    places[describe_place(ranks[r])].push_back(static_cast<int>(r));
    // Not all come to a standstill at the same moment, so some are not late yet.
    if (waits(ranks[r]) && still_for(ranks[r]) >= 0.5 * longest_s) {
      collectives[{ranks[r].beat->group_id, ranks[r].beat->number}].push_back(static_cast<int>(r));
    }
  }
  for (const auto& [place, there] : places) {
    const RankSight& first = ranks[static_cast<std::size_t>(there.front())];
    lines.push_back(there.size() == 1 ? describe_rank(there.front(), first)
                                      : fmt::format("ranks {}: {}, for {:.1f} s", rank_list(there), place,
                                                    still_for(first)));
  }
  std::size_t told = 0;
  for (const auto& [key, there] : collectives) {
    const Heartbeat& beat = *ranks[static_cast<std::size_t>(there.front())].beat;
    const std::vector<int> missing = missing_from(ranks, beat);
    if (told++ == max_collectives) {
      break;
    }
    lines.push_back(missing.empty()
                        ? fmt::format("all ranks of the group have come to {}; rank(s) {} wait in it",
                                      describe_collective(beat), rank_list(there))
                        : fmt::format("rank(s) {} missing from {}, in which rank(s) {} wait",
                                      rank_list(missing), describe_collective(beat), rank_list(there)));
  }
  for (const int cause : verdict.causes) {
    if (lines.size() > 64) {
      break;  // a report is read by people
    }
    const RankSight& sight = ranks[static_cast<std::size_t>(cause)];
    lines.push_back(fmt::format("to blame: {}", describe_rank(cause, sight)));
  }
  return lines;
}

}  // namespace athanor::train
