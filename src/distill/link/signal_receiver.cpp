#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>
#include <set>
#include <utility>

#include "base/activity.hpp"
#include "base/error.hpp"
#include "base/fault_point.hpp"
#include "base/stopwatch.hpp"
#include "distill/link/buffer_pool.hpp"
#include "distill/link/credit_window.hpp"
#include "distill/link/detail/link_wire.hpp"
#include "distill/link/teacher_link.hpp"

namespace athanor::distill {
namespace {

using parallel::ByteBuffer;
using parallel::PointToPoint;

// A packet that was asked for and not taken yet.
struct Expected {
  const Route* route = nullptr;
  std::size_t piece = 0;
  PointToPoint::Ticket ticket = 0;

  const Piece& what() const { return route->pieces[piece]; }
};

// A step whose receives are posted.
struct PostedStep {
  std::int64_t step = 0;
  std::shared_ptr<const LinkPlan> plan;
  const std::vector<Route>* routes = nullptr;
  std::vector<Expected> signals;
  std::vector<Expected> trailers;
  // As the packets taken so far say, all alike.
  std::optional<PacketHeader> first_header{};
  StepOutcome outcome = StepOutcome::pending;
};

}  // namespace

const ReceivedField& ReceivedStep::field(std::string_view name) const {
  const auto found = std::find_if(fields.begin(), fields.end(),
                                  [&](const ReceivedField& field) { return field.name == name; });
  ATHANOR_CHECK(found != fields.end(), "step {} has no field {}", step, name);
  return *found;
}

struct SignalReceiver::State {
  PointToPoint& wire;
  int role_rank;
  PlanOfStep plan_of_step;
  LinkOptions options;
  CreditWindow window;
  detail::RouteCache routes;
  BufferPool pool{};
  std::deque<PostedStep> posted{};
  std::shared_ptr<const LinkPlan> posted_plan{};
  std::set<PointToPoint::Ticket> credits_under_way{};
  std::shared_ptr<const LinkPlan> fields_plan{};  // of the buffers below
  std::vector<ByteBuffer> fields{};
  ReceivedStep received{};
  SourceStats stats{};

  const Box& memory_of(const Field& field) const {
    return field.receiver[static_cast<std::size_t>(role_rank)].memory;
  }

  // Receives first, credit afterwards: a sender that has it finds every buffer waiting.
  void post(std::int64_t step) {
    PostedStep next;
    next.step = step;
    next.plan = plan_of_step(step);
    next.routes = &routes.of(next.plan);
    if (next.plan != posted_plan) {
      check_coverage(next);
      pool.clear();  // other fields, other sizes
      posted_plan = next.plan;
    }
    for (const Route& route : *next.routes) {
      for (std::size_t piece = 0; piece < route.pieces.size(); ++piece) {
        const std::int64_t size = packet_header_bytes + route.pieces[piece].payload_bytes;
        const auto ticket =
            wire.receive(route.sender_world_rank, detail::packet_tag(static_cast<std::int64_t>(piece)),
                         pool.take(static_cast<std::size_t>(size)));
        const bool is_trailer = route.pieces[piece].kind == PieceKind::trailer;
        (is_trailer ? next.trailers : next.signals).push_back({&route, piece, ticket});
      }
    }
    for (const Route& route : *next.routes) {
      credits_under_way.insert(wire.send(route.sender_world_rank, detail::credit_tag,
                                         detail::make_credit({step, route.fingerprint})));
      stats.sent_bytes += route.sender_world_rank == wire.rank() ? 0 : credit_bytes;
    }
    posted.push_back(std::move(next));
  }

  void post_window() {
    while (const auto step = window.post_next()) {
      post(*step);
    }
  }

  // What the senders send is disjoint, so equal counts mean that every element comes once.
  void check_coverage(const PostedStep& step) const {
    std::vector<std::int64_t> coming(step.plan->fields().size(), 0);
    for (const Route& route : *step.routes) {
      for (const Piece& piece : route.pieces) {
        for (const PieceBox& part : piece.boxes) {
          coming[static_cast<std::size_t>(part.field)] += part.box.numel();
        }
      }
    }
    for (std::size_t i = 0; i < coming.size(); ++i) {
      const Field& field = step.plan->fields()[i];
      const std::int64_t needed = field.receiver[static_cast<std::size_t>(role_rank)].active.numel();
      ATHANOR_CHECK(coming[i] == needed, "{} elements of field {} come, {} are needed", coming[i], field.name,
                    needed);
    }
  }

  void drop_sent_credits() {
    for (auto credit = credits_under_way.begin(); credit != credits_under_way.end();) {
      if (wire.is_done(*credit)) {
        wire.take(*credit);
        credit = credits_under_way.erase(credit);
      } else {
        ++credit;
      }
    }
  }

  // Field buffers of a step; zero where no packet writes, which stays so while the plan does.
  void prepare_fields(const PostedStep& step) {
    received = ReceivedStep{};
    received.step = step.step;
    if (fields_plan != step.plan) {
      fields.clear();
      fields_plan = step.plan;
      for (const Field& field : step.plan->fields()) {
        const std::int64_t size = memory_of(field).numel() * field.element_bytes;
        fields.emplace_back(static_cast<std::size_t>(size));
        if (size > 0) {
          std::memset(fields.back().data(), 0, fields.back().size());
        }
      }
    }
    for (std::size_t i = 0; i < fields.size(); ++i) {
      const Field& field = step.plan->fields()[i];
      const auto& [rows, positions, columns] = memory_of(field).dims;
      received.fields.push_back({field.name,
                                 {rows.count, positions.count, columns.count},
                                 field.element_bytes,
                                 {fields[i].data(), fields[i].size()}});
    }
  }

  ExpectedPacket description_of(const PostedStep& step, const Expected& expected) const {
    return {step.step, static_cast<std::int32_t>(expected.piece), expected.route->sender_world_rank,
            wire.rank(), expected.what().payload_bytes};
  }

  // The checked header of a packet that has arrived, and its bytes.
  std::pair<PacketHeader, ByteBuffer> take_packet(PostedStep& step, const Expected& expected) {
    const ExpectedPacket description = description_of(step, expected);
    ByteBuffer packet;
    try {
      packet = wire.take(expected.ticket);
    } catch (const base::CommError& error) {
      throw base::CommError("packet {} of step {} from teacher rank {} to student rank {} is lost: {}",
                            description.piece, description.step, description.sender, description.receiver,
                            error.what());
    }
    PacketHeader header = open_packet(description, packet);
    if (!step.first_header) {
      step.first_header = header;
    }
    if (header.control != step.first_header->control ||
        header.teacher_version != step.first_header->teacher_version) {
      throw base::CommError(
          "packets of step {} to student rank {} disagree (ranks {} and {} say versions {} and {}, control "
          "words "
          "{} and {}) the teacher ranks have lost step; resume from the last checkpoint",
          step.step, wire.rank(), step.first_header->sender, header.sender,
          step.first_header->teacher_version, header.teacher_version,
          static_cast<int>(step.first_header->control), static_cast<int>(header.control));
    }
    ++stats.packets;
    if (expected.route->sender_world_rank != wire.rank()) {
      stats.received_bytes += static_cast<std::int64_t>(packet.size());
      stats.last_step_received_bytes += static_cast<std::int64_t>(packet.size());
    }
    return {header, std::move(packet)};
  }

  void check_rows(const PostedStep& step, const Piece& piece, const PacketHeader& header,
                  const RowTags& own_rows) const {
    if (piece.kind != PieceKind::rows) {
      return;
    }
    const std::int64_t first = piece.rows.first - step.plan->receiver().rows_of(role_rank).first;
    const std::int64_t sample = own_rows.first_sample_id + first;
    if (header.row_count != piece.rows.count || header.first_sample_id != sample ||
        header.token_hash != hash_of_rows(own_rows, first, piece.rows.count)) {
      throw base::DataError(
          "teacher rank {} and student rank {} read other tokens in step {} (samples {} to {} there, {} to "
          "{} "
          "here, or their tokens differ) give both the same data, batch.global, batch.seq and run.seed",
          header.sender, wire.rank(), step.step, header.first_sample_id,
          header.first_sample_id + header.row_count - 1, sample, sample + piece.rows.count - 1);
    }
  }

  void unpack(const PostedStep& step, const Piece& piece, const ByteBuffer& packet) {
    const std::byte* payload = packet.data() + packet_header_bytes;
    for (const PieceBox& part : piece.boxes) {
      const auto index = static_cast<std::size_t>(part.field);
      const Field& field = step.plan->fields()[index];
      copy_box(part.box, part.box, payload, memory_of(field), fields[index].data(), field.element_bytes);
      payload += part.box.numel() * field.element_bytes;
    }
  }

  // Takes those of `packets` that have arrived, calling take(expected) for each.
  template <typename Take>
  void take_arrived(std::vector<Expected>& packets, const Take& take) {
    std::vector<Expected> left;
    for (const Expected& expected : packets) {
      if (wire.is_done(expected.ticket)) {
        take(expected);
      } else {
        left.push_back(expected);
      }
    }
    packets = std::move(left);
  }

  // Waits until all of `packets` are taken. Counts the time without that spent on taking.
  template <typename Take>
  void take_all(const PostedStep& step, std::vector<Expected>& packets, const Take& take) {
    const base::ScopedSpan span(base::SpanKind::wait, "signals");
    const base::Stopwatch watch;
    double work_s = 0.0;
    const auto is_ready = [&] {
      const base::ScopedTimer timer(work_s);
      drop_sent_credits();
      take_arrived(packets, take);
      return packets.empty();
    };
    const bool arrived = detail::wait_on_link(wire, options, is_ready);
    const double wait_s = std::max(watch.seconds() - work_s, 0.0);
    stats.wait_s += wait_s;
    stats.last_step_wait_s += wait_s;
    if (!arrived) {
      std::set<int> senders;
      for (const Expected& expected : packets) {
        senders.insert(expected.route->sender_world_rank);
      }
      throw LinkTimeout(
          "student rank {} got no {} of step {} from teacher ranks {} within {} s ({} packets are missing: "
          "these "
          "ranks are dead, stuck or much slower) look at their logs, or raise distill.deadline_s",
          wire.rank(), packets.front().what().kind == PieceKind::trailer ? "trailer" : "signals", step.step,
          fmt::join(senders, ", "), options.deadline_s, packets.size());
    }
  }

  PostedStep& front(std::int64_t step) {
    ATHANOR_CHECK(!posted.empty() && posted.front().step == step, "step {} is asked for, step {} is next",
                  step, window.current());
    return posted.front();
  }
};

SignalReceiver::SignalReceiver(parallel::PointToPoint& wire, int role_rank, PlanOfStep plan,
                               const LinkOptions& options)
    : state_(std::make_unique<State>(State{wire, role_rank, std::move(plan), options,
                                           CreditWindow(options.window, options.first_step, options.end_step),
                                           detail::RouteCache(detail::LinkEnd::receiver, role_rank)})) {
  state_->post_window();
}

SignalReceiver::~SignalReceiver() = default;

const ReceivedStep& SignalReceiver::wait_step(std::int64_t step, const RowTags& own_rows) {
  State& state = *state_;
  PostedStep& current = state.front(step);
  base::fault_point("link.wait_step", state.wire.rank());
  ATHANOR_CHECK(std::ssize(own_rows.token_hashes) == current.plan->receiver().rows_of(state.role_rank).count,
                "tags of {} rows for the {} of this rank", own_rows.token_hashes.size(),
                current.plan->receiver().rows_of(state.role_rank).count);
  state.prepare_fields(current);
  state.stats.last_step_wait_s = 0.0;
  state.stats.last_step_received_bytes = 0;
  state.take_all(current, current.signals, [&](const Expected& expected) {
    auto [header, packet] = state.take_packet(current, expected);
    state.check_rows(current, expected.what(), header, own_rows);
    state.unpack(current, expected.what(), packet);
    state.pool.give_back(std::move(packet));
  });
  state.received.teacher_version = current.first_header->teacher_version;
  state.received.control = current.first_header->control;
  return state.received;
}

StepOutcome SignalReceiver::wait_trailer(std::int64_t step) {
  State& state = *state_;
  PostedStep& current = state.front(step);
  state.take_all(current, current.trailers, [&](const Expected& expected) {
    auto [header, packet] = state.take_packet(current, expected);
    if (header.outcome == StepOutcome::pending ||
        (current.outcome != StepOutcome::pending && current.outcome != header.outcome)) {
      throw base::CommError(
          "the trailer of step {} from teacher rank {} to student rank {} has outcome {} (others have {}) "
          "the "
          "teacher ranks have lost step; resume from the last checkpoint",
          step, header.sender, state.wire.rank(), static_cast<int>(header.outcome),
          static_cast<int>(current.outcome));
    }
    current.outcome = header.outcome;
    state.pool.give_back(std::move(packet));
  });
  return current.outcome;
}

void SignalReceiver::release(std::int64_t step) {
  State& state = *state_;
  const PostedStep& current = state.front(step);
  ATHANOR_CHECK(current.signals.empty() && current.trailers.empty(),
                "step {} is released before all its packets are taken", step);
  base::fault_point("link.release", state.wire.rank());
  state.posted.pop_front();
  state.window.release(step);
  ++state.stats.steps;
  state.post_window();
  progress();
}

void SignalReceiver::progress() {
  state_->wire.progress();
  state_->drop_sent_credits();
}

const SourceStats& SignalReceiver::stats() const {
  return state_->stats;
}

}  // namespace athanor::distill
