#include "distill/link/link_plan.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "distill/link/signal_packet.hpp"

namespace athanor::distill {

Range RoleLayout::rows_of(int role_rank) const {
  const std::int64_t replica = role_rank / tp;
  const std::int64_t first = replica * global_batch / dp;
  return {first, (replica + 1) * global_batch / dp - first};
}

std::int64_t RoleLayout::num_micro_batches(int role_rank) const {
  return (rows_of(role_rank).count + micro_batch - 1) / micro_batch;
}

Range RoleLayout::micro_batch_rows(int role_rank, std::int64_t index) const {
  const Range rows = rows_of(role_rank);
  return intersect(rows, Range{rows.first + index * micro_batch, micro_batch});
}

void RoleLayout::validate() const {
  if (dp < 1 || tp < 1 || world_ranks.size() != static_cast<std::size_t>(dp) * static_cast<std::size_t>(tp)) {
    throw base::ConfigError(
        "role {} has {} ranks for dp {} x tp {} (the product must be the number of ranks) "
        "change its ranks or its parallel.tp",
        name, world_ranks.size(), dp, tp);
  }
  if (micro_batch < 1 || global_batch < 1 || seq < 1) {
    throw base::ConfigError(
        "role {} has micro-batches of {} of {} sequences of {} tokens (all must be positive) "
        "change batch.micro, batch.global or batch.seq",
        name, micro_batch, global_batch, seq);
  }
}

std::int64_t Route::payload_bytes() const {
  std::int64_t bytes = 0;
  for (const Piece& piece : pieces) {
    bytes += piece.payload_bytes;
  }
  return bytes;
}

std::int64_t Route::wire_bytes() const {
  return payload_bytes() + static_cast<std::int64_t>(pieces.size()) * packet_header_bytes;
}

std::int64_t wire_bytes_of(const std::vector<Route>& routes) {
  std::int64_t bytes = 0;
  for (const Route& route : routes) {
    bytes += route.wire_bytes();
  }
  return bytes;
}

LinkPlan::LinkPlan(RoleLayout sender, RoleLayout receiver, std::vector<Field> fields)
    : sender_(std::move(sender)), receiver_(std::move(receiver)), fields_(std::move(fields)) {
  sender_.validate();
  receiver_.validate();
  if (sender_.global_batch != receiver_.global_batch || sender_.seq != receiver_.seq) {
    throw base::ConfigError(
        "role {} has steps of {} sequences of {} tokens, role {} of {} of {} (a step is the "
        "same batch for both) set batch.global and batch.seq once, for the run",
        sender_.name, sender_.global_batch, sender_.seq, receiver_.name, receiver_.global_batch,
        receiver_.seq);
  }
  for (const Field& field : fields_) {
    ATHANOR_CHECK(std::ssize(field.sender) == sender_.num_ranks() &&
                      std::ssize(field.receiver) == receiver_.num_ranks(),
                  "field {} has shares of {} senders and {} receivers", field.name, field.sender.size(),
                  field.receiver.size());
  }
}

int LinkPlan::field_index(const std::string& name) const {
  for (std::size_t i = 0; i < fields_.size(); ++i) {
    if (fields_[i].name == name) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

Piece LinkPlan::make_piece(PieceKind kind, const Route& route, const Range& rows) const {
  const Cadence cadence = kind == PieceKind::rows ? Cadence::micro_batch : Cadence::step;
  Piece piece;
  piece.kind = kind;
  for (std::size_t i = 0; i < fields_.size(); ++i) {
    const Field& field = fields_[i];
    if (field.cadence != cadence) {
      continue;
    }
    Box box = intersect(field.sender[static_cast<std::size_t>(route.sender)].active,
                        field.receiver[static_cast<std::size_t>(route.receiver)].active);
    if (cadence == Cadence::micro_batch) {
      box = intersect(box, box.with_rows(rows));
      if (!box.is_empty()) {
        piece.rows = box.rows();
      }
    }
    if (!box.is_empty()) {
      piece.boxes.push_back({static_cast<int>(i), box});
      piece.payload_bytes += box.numel() * field.element_bytes;
    }
  }
  return piece;
}

Route LinkPlan::make_route(int sender_rank, int receiver_rank) const {
  Route route;
  route.sender = sender_rank;
  route.receiver = receiver_rank;
  route.sender_world_rank = sender_.world_ranks[static_cast<std::size_t>(sender_rank)];
  route.receiver_world_rank = receiver_.world_ranks[static_cast<std::size_t>(receiver_rank)];
  for (std::int64_t micro = 0; micro < sender_.num_micro_batches(sender_rank); ++micro) {
    Piece piece = make_piece(PieceKind::rows, route, sender_.micro_batch_rows(sender_rank, micro));
    piece.micro_batch = micro;
    if (!piece.boxes.empty()) {
      route.pieces.push_back(std::move(piece));
    }
  }
  if (Piece piece = make_piece(PieceKind::step_fields, route, {}); !piece.boxes.empty()) {
    route.pieces.push_back(std::move(piece));
  }
  if (!receives_data(receiver_rank) && receiver_rank % sender_.num_ranks() == sender_rank) {
    route.pieces.push_back(Piece{PieceKind::notice, 0, {}, {}, 0});
  }
  if (!route.pieces.empty()) {
    route.pieces.push_back(Piece{PieceKind::trailer, 0, {}, {}, 0});
  }
  route.fingerprint = fingerprint_of(route);
  return route;
}

std::uint64_t LinkPlan::fingerprint_of(const Route& route) const {
  std::vector<std::int64_t> facts = {route.sender_world_rank, route.receiver_world_rank};
  for (const Piece& piece : route.pieces) {
    facts.insert(facts.end(), {static_cast<std::int64_t>(piece.kind), piece.micro_batch, piece.rows.first,
                               piece.rows.count, piece.payload_bytes, std::ssize(piece.boxes)});
    for (const PieceBox& part : piece.boxes) {
      const Field& field = fields_[static_cast<std::size_t>(part.field)];
      facts.push_back(static_cast<std::int64_t>(base::hash_string(field.name)));
      facts.push_back(field.element_bytes);
      for (const Range& range : part.box.dims) {
        facts.insert(facts.end(), {range.first, range.count});
      }
    }
  }
  return base::hash_bytes(facts.data(), facts.size() * sizeof(facts.front()));
}

bool LinkPlan::receives_data(int receiver_rank) const {
  return std::any_of(fields_.begin(), fields_.end(), [&](const Field& field) {
    return !field.receiver[static_cast<std::size_t>(receiver_rank)].active.is_empty();
  });
}

std::vector<Route> LinkPlan::routes_from(int sender_rank) const {
  std::vector<Route> routes;
  for (int receiver = 0; receiver < receiver_.num_ranks(); ++receiver) {
    if (Route route = make_route(sender_rank, receiver); !route.pieces.empty()) {
      routes.push_back(std::move(route));
    }
  }
  return routes;
}

std::vector<Route> LinkPlan::routes_to(int receiver_rank) const {
  std::vector<Route> routes;
  for (int sender = 0; sender < sender_.num_ranks(); ++sender) {
    if (Route route = make_route(sender, receiver_rank); !route.pieces.empty()) {
      routes.push_back(std::move(route));
    }
  }
  return routes;
}

std::int64_t LinkPlan::step_payload_bytes() const {
  std::int64_t bytes = 0;
  for (const Field& field : fields_) {
    for (const FieldShare& share : field.receiver) {
      bytes += share.active.numel() * field.element_bytes;
    }
  }
  return bytes;
}

std::int64_t LinkPlan::sender_memory_bytes(int sender_rank, std::int64_t window) const {
  return window * wire_bytes_of(routes_from(sender_rank));
}

std::int64_t LinkPlan::receiver_memory_bytes(int receiver_rank, std::int64_t window) const {
  std::int64_t bytes = window * wire_bytes_of(routes_to(receiver_rank));
  for (const Field& field : fields_) {
    bytes += field.receiver[static_cast<std::size_t>(receiver_rank)].memory.numel() * field.element_bytes;
  }
  return bytes;
}

}  // namespace athanor::distill
