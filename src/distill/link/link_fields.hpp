// Builders of the fields that flow from a teacher to a student.
//
// A row's positions are padded per role to a multiple of its tp (nn/token_batch.hpp): tensors have the padded
// positions of their role, only real ones travel, and padding on the receiver holds zero bytes.
#pragma once

#include <cstdint>
#include <string>

#include "distill/link/link_plan.hpp"

namespace athanor::distill {

/// What all builders need. A row-wise field has `columns` elements of `element_bytes` at each position.
struct FieldOptions {
  std::string name;
  std::int64_t columns = 1;
  std::int64_t element_bytes = 1;
};

/// Positions of its rows that a student rank needs.
enum class Positions { all, own_block };

/// A value of each token that all tp ranks of a teacher replica hold for all positions (top-k ids, draws,
/// CE): each rank sends its block of positions, so that no link carries more than its share.
/// Tensors: sender [rows, padded S, C], receiver the same or [rows, padded S / tp, C].
Field token_field(const FieldOptions& options, const RoleLayout& sender, const RoleLayout& receiver,
                  Positions needed = Positions::all);

/// A state of each token of which a teacher's tp rank holds its block of positions (sequence parallel).
/// Tensors: sender [rows, padded S / tp, C], receiver [rows, padded S, C] or [rows, padded S / tp, C].
Field hidden_field(const FieldOptions& options, const RoleLayout& sender, const RoleLayout& receiver,
                   Positions needed);

/// A row over the columns (the vocabulary) of each token, block t of the columns on tp rank t, on both sides.
/// Tensors: [rows, padded S, block of C].
Field column_sharded_field(const FieldOptions& options, const RoleLayout& sender, const RoleLayout& receiver);

/// Weights [lines, columns] of a step, block t of the lines on tp rank t on both sides (a head's rows of the
/// vocabulary), the same on all replicas: each of the teacher's sends an equal share of its block.
/// Tensors: [block of lines, columns].
Field sharded_weight_field(const FieldOptions& options, std::int64_t lines, const RoleLayout& sender,
                           const RoleLayout& receiver);

}  // namespace athanor::distill
