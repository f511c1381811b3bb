// Who sends what to whom, as arithmetic: from the layouts of two roles and the fields that flow between them
// to routes, pieces, sizes. Both ends compute it alone and agree on every byte before any is sent.
//
// Legend: G rows (sequences) of the global batch of a step, S positions of a row, C columns. Replica r of dp
// holds rows [r*G/dp, (r+1)*G/dp); tensor-parallel rank t the t-th block of positions or columns.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "distill/link/box.hpp"

namespace athanor::distill {

/// How a role's ranks divide a step.
struct RoleLayout {
  std::string name;              ///< for messages
  std::vector<int> world_ranks;  ///< by role rank = dp rank * tp + tp rank
  int dp = 1;
  int tp = 1;
  std::int64_t micro_batch = 1;  ///< rows of a replica that exist at a time
  std::int64_t global_batch = 1;
  std::int64_t seq = 1;

  int num_ranks() const { return dp * tp; }
  /// Rows of a rank's replica.
  Range rows_of(int role_rank) const;
  int tp_rank_of(int role_rank) const { return role_rank % tp; }
  /// Micro-batches of a replica in a step (the last may be smaller; none without rows).
  std::int64_t num_micro_batches(int role_rank) const;
  /// Rows of one of them.
  Range micro_batch_rows(int role_rank, std::int64_t index) const;
  /// Throws ConfigError unless ranks, batch and sequence are positive and the ranks are dp * tp.
  void validate() const;
};

/// When a field exists: micro-batch by micro-batch, or once a step (a head's weights).
enum class Cadence { micro_batch, step };

/// One rank's part of a field.
struct FieldShare {
  /// What its tensor holds; in dimension 1 it may reach beyond the field's shape (padding). A sender's
  /// per-micro-batch tensor holds these positions and columns of the rows of the micro-batch.
  Box memory;
  /// What it sends, or needs: inside both `memory` and the shape.
  Box active;
};

/// A distributed array that flows from one role to another. The senders' active boxes are disjoint and cover
/// the shape; those of receivers may overlap.
struct Field {
  std::string name;
  Cadence cadence = Cadence::micro_batch;
  Box shape;  ///< starts at 0; a step field has one row
  std::int64_t element_bytes = 1;
  std::vector<FieldShare> sender;    ///< by role rank
  std::vector<FieldShare> receiver;  ///< by role rank
};

/// What a packet is for: rows of a micro-batch, step fields, only its header (a route without anything to
/// carry, whose receiver still needs the control word), or the end of the step.
enum class PieceKind { rows, step_fields, notice, trailer };

/// Part of a field in a packet, in global indices.
struct PieceBox {
  int field = 0;  ///< index in LinkPlan::fields()
  Box box;
};

/// One packet of a route in every step.
struct Piece {
  PieceKind kind = PieceKind::rows;
  std::int64_t micro_batch = 0;  ///< of the sender; rows only
  Range rows;                    ///< rows only
  std::vector<PieceBox> boxes;   ///< in the order of the payload
  std::int64_t payload_bytes = 0;
};

/// All that one rank sends to another in a step. The number of a piece is its index.
struct Route {
  int sender = 0;  ///< role rank
  int receiver = 0;
  int sender_world_rank = 0;
  int receiver_world_rank = 0;
  std::vector<Piece> pieces;  ///< rows by micro-batch, step fields or notice, trailer

  std::int64_t payload_bytes() const;
  /// With a header for each piece.
  std::int64_t wire_bytes() const;
  /// Hash of everything that both ends must agree on: ranks, pieces, boxes, fields.
  std::uint64_t fingerprint = 0;
};

/// Of several routes.
std::int64_t wire_bytes_of(const std::vector<Route>& routes);

/// The routes between two roles for one set of fields.
class LinkPlan {
 public:
  /// Throws ConfigError when the two roles do not share batch and sequence.
  LinkPlan(RoleLayout sender, RoleLayout receiver, std::vector<Field> fields);

  const RoleLayout& sender() const { return sender_; }
  const RoleLayout& receiver() const { return receiver_; }
  const std::vector<Field>& fields() const { return fields_; }
  /// Index of a field, -1 when there is none of this name.
  int field_index(const std::string& name) const;
  /// Every receiver has a route from someone, so that it hears the control word.
  std::vector<Route> routes_from(int sender_rank) const;
  std::vector<Route> routes_to(int receiver_rank) const;
  /// Payload of a step from all senders to all receivers.
  std::int64_t step_payload_bytes() const;
  /// Memory of the packets of `window` steps on a sender, or on a receiver with its assembled fields.
  std::int64_t sender_memory_bytes(int sender_rank, std::int64_t window) const;
  std::int64_t receiver_memory_bytes(int receiver_rank, std::int64_t window) const;

 private:
  /// Without pieces when the two have nothing to do with each other.
  Route make_route(int sender_rank, int receiver_rank) const;
  Piece make_piece(PieceKind kind, const Route& route, const Range& rows) const;
  bool receives_data(int receiver_rank) const;
  std::uint64_t fingerprint_of(const Route& route) const;

  RoleLayout sender_;
  RoleLayout receiver_;
  std::vector<Field> fields_;
};

}  // namespace athanor::distill
