// Codecs: how a teacher's distribution or state becomes the payload of a signal, and how many bytes it takes.
//
// The encoders take the teacher's logits in chunks [C, v] of this tensor-parallel rank's slice of the
// vocabulary (before they are used up), any float type, and return payloads of the chunk's tokens, the same
// on all tp ranks. A is the accumulation type of the logits. Nothing in a payload depends on the layout of
// the teacher.
//
// Legend: C tokens of a chunk, N tokens, v vocabulary entries of this rank, V whole vocabulary, D width, K
// kept ids, M draws, J temperatures.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "base/precision.hpp"
#include "distill/signal.hpp"
#include "parallel/communicator.hpp"

namespace athanor::distill {

struct CodecOptions {
  PayloadKind kind = PayloadKind::topk;
  std::int64_t top_k = 64;    ///< K of topk
  std::int64_t samples = 50;  ///< M of sampled
};

/// Throws ConfigError unless 1 <= top_k <= vocab, or 1 <= samples <= 255, whichever the codec uses.
void validate(const CodecOptions& options, std::int64_t vocab);

/// The K largest logits of each token over the whole vocabulary, ordered by (logit descending, id ascending),
/// with the logsumexps and tails of each temperature; the tail from the logsumexp of the logits outside,
/// never from 1 - sum. Padded columns (-infinity) are never kept. Collective over tp.
TopKSignal encode_topk(const at::Tensor& logits_Cv, std::int64_t first_id, std::int64_t top_k,
                       const std::vector<double>& temperatures, const parallel::Communicator& tp);

/// Which token of the run a row is; random numbers depend on nothing else.
struct TokenPlaces {
  at::Tensor sample_ids_C;  ///< int64 global index of the sample in training order
  at::Tensor positions_C;   ///< int64 position in the sample
};

/// M draws with replacement from softmax(logits / T) of each token for each temperature, by inverse CDF in
/// the order of ids. Probabilities are rounded to 2^-40 of the token's largest and summed as integers, so
/// equal logits give equal draws on any split of the vocabulary. Draw m of a token is Philox(seed,
/// signal_sampling, "distill.sampled", (sample, position, m)). Collective over tp.
SampledSignal encode_sampled(const at::Tensor& logits_Cv, std::int64_t first_id, std::int64_t samples,
                             const std::vector<double>& temperatures, const TokenPlaces& places,
                             std::uint64_t seed, const parallel::Communicator& tp);

/// Logits of a chunk from the teacher's states [C, D] and its head's rows [v, D].
at::Tensor teacher_chunk_logits(const at::Tensor& h_CD, const at::Tensor& head_vD);

/// Payloads of consecutive chunks as one. Throws InternalError when they are of different kinds or
/// temperatures.
TeacherSignal concatenate(const std::vector<TeacherSignal>& chunks);

/// Rows [N, D] as they travel.
struct EncodedStates {
  at::Tensor data_ND;   ///< accumulation type, bf16, or the bytes of fp8 (uint8)
  at::Tensor scale_NB;  ///< fp8: one f32 a block of state_block elements of a row; undefined otherwise
};
/// Elements of a row that share a scale in fp8; the last block of a row may be shorter.
inline constexpr std::int64_t state_block = 128;

/// States [..., D] as rows in the wire's type. fp8: a block is divided by its scale, its largest |value| over
/// the format's largest number (448 for e4m3, 57344 for e5m2), and rounded to nearest; a block with a NaN or
/// infinity gets a NaN scale and decodes to NaN, nothing is saturated.
EncodedStates encode_states(const at::Tensor& states, base::WireType wire, base::Fp8Format format);
/// The rows [N, D] in `type`.
at::Tensor decode_states(const EncodedStates& encoded, base::Fp8Format format, at::ScalarType type);

// Bytes on the wire, exactly. `full_bytes` is the size of the accumulation type (4, or 8 in f64 runs).

/// One rank's slice of v columns of a token: v * full_bytes.
std::int64_t full_bytes_per_token(std::int64_t vocab, std::int64_t full_bytes);
/// K (4 + full_bytes) + full_bytes (1 + 2 J).
std::int64_t topk_bytes_per_token(std::int64_t top_k, std::int64_t temperatures, std::int64_t full_bytes);
/// As tensors of fixed size: J (M (4 + 4) + full_bytes); packed, with u distinct ids over all temperatures of
/// a token: J (1 + full_bytes) + 5 u (pack_sampled).
std::int64_t sampled_bytes_per_token(std::int64_t samples, std::int64_t temperatures,
                                     std::int64_t full_bytes);
std::int64_t packed_sampled_bytes(std::int64_t tokens, std::int64_t distinct_ids, std::int64_t temperatures,
                                  std::int64_t full_bytes);
/// D elements of the wire's type, and for fp8 4 bytes for each started block of 128.
std::int64_t state_bytes_per_token(std::int64_t width, base::WireType wire, std::int64_t full_bytes);
/// Queries and keys of one layer: state_bytes_per_token of (heads + kv_heads) * head_dim.
std::int64_t attention_bytes_per_token(std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim,
                                       base::WireType wire, std::int64_t full_bytes);
/// The head of one teacher version: V * D elements of the teacher's compute type.
std::int64_t head_bytes(std::int64_t vocab, std::int64_t width, std::int64_t element_bytes);

/// The draws of N tokens without their empty places: for each token and temperature the number of distinct
/// ids (u8), then the ids (int32, little-endian) and counts (u8), then the entropy. uint8 [bytes].
at::Tensor pack_sampled(const SampledSignal& sampled);
/// The inverse, for `tokens` tokens of `temperatures` temperatures and `samples` draws, entropies in `type`.
/// Throws DataError when the bytes do not hold that.
SampledSignal unpack_sampled(const at::Tensor& bytes, std::int64_t tokens, std::int64_t temperatures,
                             std::int64_t samples, at::ScalarType type);

}  // namespace athanor::distill
