// Layouts and fields for tests of the teacher link, and tensors whose elements know their global place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/hash.hpp"
#include "distill/link/link_fields.hpp"
#include "distill/link/link_plan.hpp"
#include "distill/link/signal_packet.hpp"

namespace athanor::distill::tests {

struct Split {
  int dp = 1;
  int tp = 1;
  std::int64_t micro = 1;
};

inline RoleLayout make_layout(const std::string& name, int first_rank, const Split& split, std::int64_t batch,
                              std::int64_t seq) {
  RoleLayout layout{name,        std::vector<int>(static_cast<std::size_t>(split.dp * split.tp)),
                    split.dp,    split.tp,
                    split.micro, batch,
                    seq};
  std::iota(layout.world_ranks.begin(), layout.world_ranks.end(), first_rank);
  return layout;
}

constexpr std::int64_t vocab = 11;
constexpr std::int64_t hidden = 3;

// One field of each kind; elements are int64, which makes them easy to name.
inline std::shared_ptr<const LinkPlan> make_plan(const RoleLayout& teacher, const RoleLayout& student,
                                                 bool with_head = true) {
  std::vector<Field> fields = {
      token_field({"ids", 2, 8}, teacher, student),
      token_field({"ce", 1, 8}, teacher, student, Positions::own_block),
      hidden_field({"state", hidden, 8}, teacher, student, Positions::own_block),
      hidden_field({"last", hidden, 8}, teacher, student, Positions::all),
      column_sharded_field({"logits", vocab, 8}, teacher, student),
  };
  if (with_head) {
    fields.push_back(sharded_weight_field({"head", hidden, 8}, vocab, teacher, student));
  }
  return std::make_shared<LinkPlan>(teacher, student, std::move(fields));
}

// What element (row, position, column) of a field is in a step; never 0, which is padding.
inline std::int64_t value_at(const std::string& field, std::int64_t step, std::int64_t row,
                             std::int64_t position, std::int64_t column) {
  const std::int64_t place[4] = {step, row, position, column};
  return static_cast<std::int64_t>(base::hash_bytes(place, sizeof(place)) ^ base::hash_string(field)) | 1;
}

// The tensor that holds `memory`: real elements as value_at says, others 0.
inline std::vector<std::int64_t> tensor_of(const Field& field, const Box& memory, std::int64_t step) {
  std::vector<std::int64_t> values;
  for (std::int64_t row = memory.dims[0].first; row < memory.dims[0].end(); ++row) {
    for (std::int64_t position = memory.dims[1].first; position < memory.dims[1].end(); ++position) {
      for (std::int64_t column = memory.dims[2].first; column < memory.dims[2].end(); ++column) {
        const bool is_real = position < field.shape.dims[1].end();
        values.push_back(is_real ? value_at(field.name, step, row, position, column) : 0);
      }
    }
  }
  return values;
}

// What a receiver must end up with: as tensor_of, but 0 where nothing is active.
inline std::vector<std::int64_t> needed_of(const Field& field, const FieldShare& share, std::int64_t step) {
  return share.active.is_empty()
             ? std::vector<std::int64_t>(static_cast<std::size_t>(share.memory.numel()), 0)
             : tensor_of(field, share.memory, step);
}

// Tags of some rows of the global batch of a step.
inline RowTags tags_of(const Range& rows, std::int64_t batch, std::int64_t step) {
  RowTags tags;
  tags.first_sample_id = step * batch + rows.first;
  for (std::int64_t row = 0; row < rows.count; ++row) {
    const std::int64_t sample = tags.first_sample_id + row;
    tags.token_hashes.push_back(base::hash_bytes(&sample, sizeof(sample)));
  }
  return tags;
}

}  // namespace athanor::distill::tests
