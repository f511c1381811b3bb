// From plain token arrays to what a model reads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/batch.hpp"
#include "nn/token_batch.hpp"

namespace athanor::infer {

/// `batch` as tensors, its sequences padded to a multiple of `tp_size`: token 0, no label, positions that go
/// on, a document of their own. documents_BS stays undefined when every sequence is one document. A batch
/// without rows gives tensors without rows.
nn::TokenBatch make_token_batch(const data::Batch& batch, int tp_size);

/// Tokens alone ([rows][seq], equal lengths, `seq` where there are no rows), at positions first_position,
/// ...; padded likewise; no labels, sample ids 0.
nn::TokenBatch make_token_batch(std::span<const std::vector<std::int64_t>> rows, std::int64_t seq,
                                std::int64_t first_position, int tp_size);

}  // namespace athanor::infer
