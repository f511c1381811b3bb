#include "infer/token_batch.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.hpp"

namespace athanor::infer {
namespace {

// [rows, padded] int64 of row-major `values` [rows, seq]; column seq + j of the padding is fill(row's last
// value, j).
template <typename Fill>
at::Tensor padded(const std::vector<std::int32_t>& values, std::int64_t rows, std::int64_t seq,
                  std::int64_t padded_seq, Fill fill) {
  ATHANOR_CHECK(static_cast<std::int64_t>(values.size()) == rows * seq, "{} values for {} rows of {}",
                values.size(), rows, seq);
  at::Tensor out = at::empty({rows, padded_seq}, at::kLong);
  std::int64_t* data = out.mutable_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int32_t* source = values.data() + row * seq;
    std::int64_t* target = data + row * padded_seq;
    std::copy(source, source + seq, target);
    for (std::int64_t j = seq; j < padded_seq; ++j) {
      target[j] = fill(target[seq - 1], j - seq);
    }
  }
  return out;
}

}  // namespace

nn::TokenBatch make_token_batch(const data::Batch& batch, int tp_size) {
  const std::int64_t padded_seq = nn::padded_sequence(batch.seq, tp_size);
  const auto tensor = [&](const std::vector<std::int32_t>& values, auto fill) {
    return padded(values, batch.rows, batch.seq, padded_seq, fill);
  };
  nn::TokenBatch out;
  out.real_seq = batch.seq;
  out.tokens_BS = tensor(batch.tokens, [](std::int64_t, std::int64_t) { return std::int64_t{0}; });
  out.labels_BS = tensor(batch.labels, [](std::int64_t, std::int64_t) { return nn::ignored_label; });
  out.positions_BS = tensor(batch.positions, [](std::int64_t last, std::int64_t j) { return last + 1 + j; });
  if (std::any_of(batch.documents.begin(), batch.documents.end(), [](std::int32_t id) { return id != 0; })) {
    out.documents_BS = tensor(batch.documents, [](std::int64_t last, std::int64_t) { return last + 1; });
  }
  out.sample_ids_B = at::empty({batch.rows}, at::kLong);
  std::copy_n(batch.sample_ids.begin(), batch.rows, out.sample_ids_B.mutable_data_ptr<std::int64_t>());
  return out;
}

nn::TokenBatch make_token_batch(std::span<const std::vector<std::int64_t>> rows, std::int64_t seq,
                                std::int64_t first_position, int tp_size) {
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t padded_seq = nn::padded_sequence(seq, tp_size);
  nn::TokenBatch out;
  out.real_seq = seq;
  out.tokens_BS = at::zeros({count, padded_seq}, at::kLong);
  std::int64_t* data = out.tokens_BS.mutable_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < count; ++row) {
    const std::vector<std::int64_t>& tokens = rows[static_cast<std::size_t>(row)];
    ATHANOR_CHECK(static_cast<std::int64_t>(tokens.size()) == seq, "row {} has {} tokens instead of {}", row,
                  tokens.size(), seq);
    std::copy(tokens.begin(), tokens.end(), data + row * padded_seq);
  }
  out.positions_BS = at::arange(first_position, first_position + padded_seq, at::kLong)
                         .unsqueeze(0)
                         .expand({count, padded_seq});
  out.positions_BS = out.positions_BS.contiguous();
  out.sample_ids_B = at::zeros({count}, at::kLong);
  return out;
}

}  // namespace athanor::infer
