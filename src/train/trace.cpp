#include "train/trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/log.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/point_to_point.hpp"
#include "parallel/run_agreed.hpp"
#include "train/trace_file.hpp"
#include "train/trace_recorder.hpp"

namespace athanor::train {
namespace {

constexpr int clock_rounds = 16;
constexpr double clock_deadline_s = 60.0;
constexpr int clock_tag = 0;
constexpr std::int64_t room_per_step = std::int64_t{1} << 14;
constexpr std::int64_t max_room = std::int64_t{1} << 20;
constexpr std::int64_t skipped_steps = 2;  // the first ones allocate and tune

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

parallel::ByteBuffer bytes_of(std::int64_t value) {
  parallel::ByteBuffer bytes(sizeof(value));
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::int64_t receive_number(parallel::PointToPoint& wire, parallel::PointToPoint::Ticket ticket) {
  if (!wire.wait_until([&] { return wire.is_done(ticket); }, clock_deadline_s)) {
    throw base::CommError(
        "rank {} got no answer while the clocks were compared (train.trace; a rank is dead or stuck) look at "
        "the other ranks' logs",
        wire.rank());
  }
  std::int64_t value = 0;
  const parallel::ByteBuffer bytes = wire.take(ticket);
  std::memcpy(&value, bytes.data(), sizeof(value));
  return value;
}

// Rank 0 tells its time to one rank after another.
void tell_time(parallel::PointToPoint& wire) {
  for (int rank = 1; rank < wire.size(); ++rank) {
    for (int round = 0; round < clock_rounds; ++round) {
      receive_number(wire, wire.receive(rank, clock_tag, parallel::ByteBuffer(sizeof(std::int64_t))));
      wire.send(rank, clock_tag, bytes_of(now_ns()));
    }
  }
}

// How far rank 0's clock is ahead, from the quickest of some questions. What is not more than the question
// took counts as nothing: ranks of one host share a clock.
std::int64_t ask_time(parallel::PointToPoint& wire) {
  std::int64_t offset_ns = 0;
  std::int64_t shortest_ns = std::numeric_limits<std::int64_t>::max();
  for (int round = 0; round < clock_rounds; ++round) {
    const auto answer = wire.receive(0, clock_tag, parallel::ByteBuffer(sizeof(std::int64_t)));
    const std::int64_t asked_ns = now_ns();
    wire.send(0, clock_tag, bytes_of(asked_ns));
    const std::int64_t root_ns = receive_number(wire, answer);
    const std::int64_t took_ns = now_ns() - asked_ns;
    if (took_ns < shortest_ns) {
      shortest_ns = took_ns;
      offset_ns = root_ns - (asked_ns + took_ns / 2);
    }
  }
  return std::abs(offset_ns) <= shortest_ns ? 0 : offset_ns;
}

std::size_t room_for(const TraceOptions& options) {
  return static_cast<std::size_t>(std::clamp(options.steps * room_per_step, 4 * room_per_step, max_room));
}

}  // namespace

struct JobTrace::State {
  TraceOptions options;
  Place place;
  const parallel::Communicator& world;
  TraceProcess process{};
  TraceRecorder recorder;
  std::optional<base::SpanObservation> observation;

  State(const TraceOptions& trace_options, Place where, const parallel::Communicator& all)
      : options(trace_options), place(std::move(where)), world(all), recorder(room_for(options)) {
    process.world_rank = world.rank();
    process.name = fmt::format("{} rank {}", place.role, place.role_rank);
    const std::int64_t start_ns = now_ns();
    if (world.size() > 1) {
      parallel::PointToPoint wire(world, "trace", {.traffic = parallel::Traffic::other});
      if (world.rank() == 0) {
        tell_time(wire);
      } else {
        process.offset_ns = ask_time(wire);
      }
    }
    process.zero_ns = parallel::all_reduce_max(world.rank() == 0 ? start_ns : 0, world);
    observation.emplace(recorder);
  }

  std::string part(int rank) const { return fmt::format("{}/trace.{}.part", place.run_dir, rank); }
};

JobTrace::JobTrace(const TraceOptions& options, Place place, const parallel::Communicator& world) {
  if (options.steps > 0) {
    state_ = std::make_unique<State>(options, std::move(place), world);
  }
}

JobTrace::~JobTrace() = default;

void JobTrace::start(std::int64_t first_step, std::int64_t last_step) {
  if (!state_) {
    return;
  }
  const std::int64_t steps = state_->options.steps;
  std::int64_t from = state_->options.from;
  if (from == 0) {
    from = std::max(first_step + 1, std::min(first_step + skipped_steps + 1, last_step - steps + 1));
  }
  state_->recorder.set_steps(from, from + steps - 1);
}

void JobTrace::finish() {
  if (!state_) {
    return;
  }
  State& state = *state_;
  state.observation.reset();
  state.process.lost_spans = state.recorder.num_lost();
  const std::vector<TraceEvent> events = state.recorder.events();
  parallel::run_agreed(state.world, [&] {
    write_trace_part(state.part(state.world.rank()), trace_lines(state.process, events));
  });
  const std::string path = state.place.run_dir + "/trace.json";
  parallel::run_agreed(state.world, [&] {
    if (state.world.rank() == 0) {
      std::vector<std::string> parts;
      for (int rank = 0; rank < state.world.size(); ++rank) {
        parts.push_back(state.part(rank));
      }
      merge_trace_parts(parts, path);
    }
  });
  base::log_info("the timeline of {} steps is {} (open it in ui.perfetto.dev)", state.options.steps, path);
}

}  // namespace athanor::train
