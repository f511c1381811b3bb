#include "distill/link/link_fields.hpp"

#include <utility>

#include "nn/token_batch.hpp"
#include "parallel/shard_spec.hpp"

namespace athanor::distill {
namespace {

using Shares = std::vector<FieldShare>;

Range whole(std::int64_t count) {
  return {0, count};
}

Range block_range(std::int64_t total, std::int64_t parts, std::int64_t index) {
  const parallel::Block block = parallel::block_of(total, parts, index);
  return {block.first, block.count};
}

Range padded_positions(const RoleLayout& layout) {
  return whole(nn::padded_sequence(layout.seq, layout.tp));
}

// The block of padded positions of a rank; parts beyond the real ones are never active.
Range position_block(const RoleLayout& layout, int role_rank) {
  const std::int64_t count = padded_positions(layout).count / layout.tp;
  return {layout.tp_rank_of(role_rank) * count, count};
}

Field row_field(const FieldOptions& options, const RoleLayout& sender) {
  Field field;
  field.name = options.name;
  field.cadence = Cadence::micro_batch;
  field.shape = Box{{whole(sender.global_batch), whole(sender.seq), whole(options.columns)}};
  field.element_bytes = options.element_bytes;
  return field;
}

// Shares of all ranks of a role, each a function (role rank) -> (memory, active before clipping to `shape`).
template <typename ShareOf>
Shares shares_of(const RoleLayout& layout, const Box& shape, const ShareOf& share_of) {
  Shares shares;
  for (int rank = 0; rank < layout.num_ranks(); ++rank) {
    FieldShare share = share_of(rank);
    share.active = intersect(share.active, shape);
    shares.push_back(share);
  }
  return shares;
}

Shares receiver_token_shares(const Field& field, const RoleLayout& layout, Positions needed) {
  return shares_of(layout, field.shape, [&](int rank) {
    const Range positions =
        needed == Positions::all ? padded_positions(layout) : position_block(layout, rank);
    const Box box{{layout.rows_of(rank), positions, field.shape.dims[2]}};
    return FieldShare{box, box};
  });
}

}  // namespace

Field token_field(const FieldOptions& options, const RoleLayout& sender, const RoleLayout& receiver,
                  Positions needed) {
  Field field = row_field(options, sender);
  field.sender = shares_of(sender, field.shape, [&](int rank) {
    const Box memory{{sender.rows_of(rank), padded_positions(sender), field.shape.dims[2]}};
    const Box own{{memory.rows(), position_block(sender, rank), field.shape.dims[2]}};
    return FieldShare{memory, own};
  });
  field.receiver = receiver_token_shares(field, receiver, needed);
  return field;
}

Field hidden_field(const FieldOptions& options, const RoleLayout& sender, const RoleLayout& receiver,
                   Positions needed) {
  Field field = row_field(options, sender);
  field.sender = shares_of(sender, field.shape, [&](int rank) {
    const Box box{{sender.rows_of(rank), position_block(sender, rank), field.shape.dims[2]}};
    return FieldShare{box, box};
  });
  field.receiver = receiver_token_shares(field, receiver, needed);
  return field;
}

Field column_sharded_field(const FieldOptions& options, const RoleLayout& sender,
                           const RoleLayout& receiver) {
  Field field = row_field(options, sender);
  const auto shares = [&](const RoleLayout& layout) {
    return shares_of(layout, field.shape, [&](int rank) {
      const Box box{{layout.rows_of(rank), padded_positions(layout),
                     block_range(options.columns, layout.tp, layout.tp_rank_of(rank))}};
      return FieldShare{box, box};
    });
  };
  field.sender = shares(sender);
  field.receiver = shares(receiver);
  return field;
}

Field sharded_weight_field(const FieldOptions& options, std::int64_t lines, const RoleLayout& sender,
                           const RoleLayout& receiver) {
  Field field;
  field.name = options.name;
  field.cadence = Cadence::step;
  field.shape = Box{{whole(1), whole(lines), whole(options.columns)}};
  field.element_bytes = options.element_bytes;
  const auto held_lines = [&](const RoleLayout& layout, int rank) {
    return Box{{whole(1), block_range(lines, layout.tp, layout.tp_rank_of(rank)), whole(options.columns)}};
  };
  field.sender = shares_of(sender, field.shape, [&](int rank) {
    const Box memory = held_lines(sender, rank);
    const Range part = block_range(memory.dims[1].count, sender.dp, rank / sender.tp);
    Box own = memory;
    own.dims[1] = {memory.dims[1].first + part.first, part.count};
    return FieldShare{memory, own};
  });
  field.receiver = shares_of(receiver, field.shape, [&](int rank) {
    const Box box = held_lines(receiver, rank);
    return FieldShare{box, box};
  });
  return field;
}

}  // namespace athanor::distill
