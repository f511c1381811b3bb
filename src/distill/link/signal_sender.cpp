#include <fmt/ranges.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
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

// The routes to one student in the step that has begun, and which of their pieces are sent.
struct StudentStep {
  std::shared_ptr<const LinkPlan> plan;
  const std::vector<Route>* routes = nullptr;
  std::vector<std::vector<bool>> sent;
};

// What is said about a packet's rows; nothing for the others.
struct PacketRows {
  Range rows;
  std::int64_t first_sample_id = 0;
  std::uint64_t token_hash = 0;
};

}  // namespace

struct SignalSender::State {
  PointToPoint& wire;
  int role_rank;
  std::vector<PlanOfStep> students;
  LinkOptions options;
  CreditBook credits{wire.rank()};
  std::vector<detail::RouteCache> caches{};
  BufferPool pool{};
  std::map<int, PointToPoint::Ticket> credit_receives{};  // by receiver
  std::deque<PointToPoint::Ticket> sends{};
  std::int64_t next_step = 0;
  std::optional<StepStart> started{};
  std::vector<StudentStep> steps{};  // by student
  SenderStats stats{};

  void receive_credit_of(int receiver) {
    credit_receives[receiver] =
        wire.receive(receiver, detail::credit_tag, ByteBuffer(static_cast<std::size_t>(credit_bytes)));
  }

  void take_credits() {
    for (auto& [receiver, ticket] : credit_receives) {
      while (wire.is_done(ticket)) {
        credits.grant(receiver, detail::read_credit(wire.take(ticket), receiver, wire.rank()));
        receive_credit_of(receiver);
      }
    }
  }

  void reap_sends() {
    std::deque<PointToPoint::Ticket> open;
    for (const PointToPoint::Ticket ticket : sends) {
      if (wire.is_done(ticket)) {
        const base::ScopedSpan span(span_of("end_send", ticket, 0));
        pool.give_back(wire.take(ticket));
      } else {
        open.push_back(ticket);
      }
    }
    sends.swap(open);
  }

  void settle() {
    take_credits();
    reap_sends();
  }

  void find_routes(std::int64_t step) {
    std::vector<StudentStep> next;
    for (std::size_t i = 0; i < students.size(); ++i) {
      StudentStep student;
      student.plan = students[i](step);
      student.routes = &caches[i].of(student.plan);
      for (const Route& route : *student.routes) {
        student.sent.emplace_back(route.pieces.size(), false);
        if (!credit_receives.contains(route.receiver_world_rank)) {
          receive_credit_of(route.receiver_world_rank);
        }
      }
      if (i < steps.size() && steps[i].plan != student.plan) {
        pool.clear();  // other fields, other sizes
      }
      next.push_back(std::move(student));
    }
    steps = std::move(next);
  }

  // World ranks that have not granted the step.
  std::vector<int> receivers_without_credit(std::int64_t step) const {
    std::vector<int> missing;
    for (const StudentStep& student : steps) {
      for (const Route& route : *student.routes) {
        if (!credits.has(route.receiver_world_rank, step)) {
          missing.push_back(route.receiver_world_rank);
        }
      }
    }
    return missing;
  }

  void wait_for_credits(std::int64_t step) {
    const base::ScopedSpan span(base::SpanKind::wait, "credit");
    const base::Stopwatch watch;
    const auto is_ready = [&] {
      settle();
      return receivers_without_credit(step).empty();
    };
    const bool granted = detail::wait_on_link(wire, options, is_ready);
    stats.last_step_wait_s = watch.seconds();
    stats.wait_s += stats.last_step_wait_s;
    if (!granted) {
      throw LinkTimeout(
          "teacher rank {} got no credit for step {} from student ranks {} within {} s (they are dead, stuck "
          "or "
          "much slower) look at their logs, or raise distill.deadline_s",
          wire.rank(), step, fmt::join(receivers_without_credit(step), ", "), options.deadline_s);
    }
  }

  void use_credits(std::int64_t step) {
    for (const StudentStep& student : steps) {
      for (const Route& route : *student.routes) {
        credits.use(route.receiver_world_rank, {step, route.fingerprint});
      }
    }
  }

  // Calls visit(student, route, piece) and marks the piece as sent for each piece that `selects` picks.
  template <typename Selects, typename Visit>
  void for_pieces(const Selects& selects, const Visit& visit) {
    for (StudentStep& student : steps) {
      for (std::size_t r = 0; r < student.routes->size(); ++r) {
        const Route& route = (*student.routes)[r];
        for (std::size_t p = 0; p < route.pieces.size(); ++p) {
          if (selects(route.pieces[p])) {
            ATHANOR_CHECK(!student.sent[r][p], "packet {} of step {} to rank {} is sent twice", p,
                          started->step, route.receiver_world_rank);
            student.sent[r][p] = true;
            visit(student, route, p);
          }
        }
      }
    }
  }

  void send_piece(const StudentStep& student, const Route& route, std::size_t number, const PacketRows& rows,
                  const std::vector<FieldView>& views, StepOutcome outcome) {
    const Piece& piece = route.pieces[number];
    ByteBuffer packet = pool.take(static_cast<std::size_t>(packet_header_bytes + piece.payload_bytes));
    std::byte* payload = packet.data() + packet_header_bytes;
    for (const PieceBox& part : piece.boxes) {
      const Field& field = student.plan->fields()[static_cast<std::size_t>(part.field)];
      Box memory = field.sender[static_cast<std::size_t>(role_rank)].memory;
      if (field.cadence == Cadence::micro_batch) {
        memory = memory.with_rows(rows.rows);
      }
      copy_box(part.box, memory, view_of(field, memory, views).data(), part.box, payload,
               field.element_bytes);
      payload += part.box.numel() * field.element_bytes;
    }
    PacketHeader header;
    header.step = started->step;
    header.teacher_version = started->teacher_version;
    header.first_sample_id = rows.first_sample_id;
    header.row_count = piece.rows.count;
    header.token_hash = rows.token_hash;
    header.payload_bytes = piece.payload_bytes;
    header.piece = static_cast<std::int32_t>(number);
    header.sender = wire.rank();
    header.receiver = route.receiver_world_rank;
    header.control = started->control;
    header.outcome = outcome;
    seal_packet(header, packet);
    count_packet(route, packet);
    const auto bytes = static_cast<std::int64_t>(packet.size());
    sends.push_back(
        wire.send(route.receiver_world_rank, detail::packet_tag(header.piece), std::move(packet)));
    const base::ScopedSpan span(span_of("start_send", sends.back(), bytes));
  }

  // A packet's way begins with one of these and ends with another.
  static base::Span span_of(std::string_view name, PointToPoint::Ticket ticket, std::int64_t bytes) {
    return {
        .kind = base::SpanKind::compute, .name = name, .group = "signals", .bytes = bytes, .number = ticket};
  }

  void count_packet(const Route& route, const ByteBuffer& packet) {
    ++stats.packets;
    if (route.receiver_world_rank != wire.rank()) {
      stats.sent_bytes += static_cast<std::int64_t>(packet.size());
      stats.last_step_sent_bytes += static_cast<std::int64_t>(packet.size());
    }
  }

  std::span<const std::byte> view_of(const Field& field, const Box& memory,
                                     const std::vector<FieldView>& views) const {
    const auto found = std::find_if(views.begin(), views.end(),
                                    [&](const FieldView& view) { return view.name == field.name; });
    ATHANOR_CHECK(found != views.end(), "field {} of step {} is not given", field.name, started->step);
    ATHANOR_CHECK(static_cast<std::int64_t>(found->bytes.size()) == memory.numel() * field.element_bytes,
                  "field {} has {} bytes, box {} of elements of {} was expected", field.name,
                  found->bytes.size(), memory.describe(), field.element_bytes);
    return found->bytes;
  }

  void check_all_sent() const {
    for (const StudentStep& student : steps) {
      for (std::size_t r = 0; r < student.routes->size(); ++r) {
        const std::vector<bool>& sent = student.sent[r];
        ATHANOR_CHECK(std::find(sent.begin(), sent.end(), false) == sent.end(),
                      "step {} ends before all its packets to rank {} are sent", started->step,
                      (*student.routes)[r].receiver_world_rank);
      }
    }
  }
};

SignalSender::SignalSender(parallel::PointToPoint& wire, int role_rank, std::vector<PlanOfStep> students,
                           const LinkOptions& options)
    : state_(std::make_unique<State>(State{wire, role_rank, std::move(students), options})) {
  state_->next_step = options.first_step;
  state_->caches.assign(state_->students.size(), detail::RouteCache(detail::LinkEnd::sender, role_rank));
}

SignalSender::~SignalSender() = default;

void SignalSender::begin_step(const StepStart& start) {
  State& state = *state_;
  ATHANOR_CHECK(!state.started && start.step == state.next_step, "step {} begins where step {} {}",
                start.step, state.next_step, state.started ? "has not ended" : "is next");
  base::fault_point("link.begin_step", state.wire.rank());
  state.find_routes(start.step);
  state.wait_for_credits(start.step);
  state.use_credits(start.step);
  state.started = start;
  state.stats.last_step_sent_bytes = 0;
  state.for_pieces([](const Piece& piece) { return piece.kind == PieceKind::notice; },
                   [&](const StudentStep& student, const Route& route, std::size_t number) {
                     state.send_piece(student, route, number, {}, {}, StepOutcome::pending);
                   });
  leave();
}

bool SignalSender::wants(std::string_view name) const {
  return std::any_of(state_->steps.begin(), state_->steps.end(), [&](const StudentStep& student) {
    return student.plan->field_index(std::string(name)) >= 0;
  });
}

void SignalSender::send_rows(std::int64_t micro_batch, const RowTags& tags,
                             const std::vector<FieldView>& fields) {
  State& state = *state_;
  ATHANOR_CHECK(state.started, "rows are sent outside a step");
  const base::ScopedSpan span(base::SpanKind::phase, "send signals");
  base::fault_point("link.send_rows", state.wire.rank());
  state.for_pieces(
      [&](const Piece& piece) { return piece.kind == PieceKind::rows && piece.micro_batch == micro_batch; },
      [&](const StudentStep& student, const Route& route, std::size_t number) {
        const Range rows = student.plan->sender().micro_batch_rows(state.role_rank, micro_batch);
        ATHANOR_CHECK(std::ssize(tags.token_hashes) == rows.count,
                      "micro-batch {} has {} rows and tags of {}", micro_batch, rows.count,
                      tags.token_hashes.size());
        const Range sent = route.pieces[number].rows;
        const std::int64_t skipped = sent.first - rows.first;
        state.send_piece(student, route, number,
                         {rows, tags.first_sample_id + skipped, hash_of_rows(tags, skipped, sent.count)},
                         fields, StepOutcome::pending);
      });
  leave();
}

void SignalSender::send_step_fields(const std::vector<FieldView>& fields) {
  State& state = *state_;
  ATHANOR_CHECK(state.started, "step fields are sent outside a step");
  const base::ScopedSpan span(base::SpanKind::phase, "send step fields");
  state.for_pieces([](const Piece& piece) { return piece.kind == PieceKind::step_fields; },
                   [&](const StudentStep& student, const Route& route, std::size_t number) {
                     state.send_piece(student, route, number, {}, fields, StepOutcome::pending);
                   });
  leave();
}

void SignalSender::end_step(StepOutcome outcome) {
  State& state = *state_;
  ATHANOR_CHECK(state.started && outcome != StepOutcome::pending, "a step ends that has no outcome");
  base::fault_point("link.end_step", state.wire.rank());
  state.for_pieces([](const Piece& piece) { return piece.kind == PieceKind::trailer; },
                   [&](const StudentStep& student, const Route& route, std::size_t number) {
                     state.send_piece(student, route, number, {}, {}, outcome);
                   });
  state.check_all_sent();
  state.started.reset();
  ++state.next_step;
  ++state.stats.steps;
  leave();
}

// Lets what was sent travel meanwhile, or sees it off.
void SignalSender::leave() {
  progress();
  if (!state_->options.overlap_sends) {
    finish();
  }
}

void SignalSender::progress() {
  state_->wire.progress();
  state_->settle();
}

void SignalSender::finish() {
  const base::ScopedSpan span(base::SpanKind::wait, "sends");
  const auto is_ready = [&] {
    state_->settle();
    return state_->sends.empty();
  };
  if (!detail::wait_on_link(state_->wire, state_->options, is_ready)) {
    throw LinkTimeout(
        "{} packets of teacher rank {} were not taken within {} s (their students are dead or stuck) look at "
        "the "
        "logs of the student ranks, or raise distill.deadline_s",
        state_->sends.size(), state_->wire.rank(), state_->options.deadline_s);
  }
}

const SenderStats& SignalSender::stats() const {
  return state_->stats;
}

}  // namespace athanor::distill
