// Which choices an expert keeps when its capacity is limited.
//
// Legend: B sequences, S positions of a whole sequence, K choices of a token.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

#include "moe/moe_options.hpp"

namespace athanor::moe {

/// Keeps at most `capacity` choices of each sequence per expert: the earliest tokens' (`position`; of one
/// token the better choice first) or those of the highest scores (`score`; ties as `position`). ids_BSK
/// int64, a negative id is no choice; scores_BSK in f32 or f64, read by `score` only. Returns kept_BSK
/// (bool). Sequences are independent, so the decision is the same however they are spread over ranks.
at::Tensor keep_within_capacity(const at::Tensor& ids_BSK, const at::Tensor& scores_BSK,
                                std::int64_t num_experts, std::int64_t capacity, DropPolicy policy);

}  // namespace athanor::moe
