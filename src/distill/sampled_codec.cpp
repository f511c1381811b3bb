#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "base/error.hpp"
#include "base/philox.hpp"
#include "distill/codec.hpp"
#include "distill/detail/chunk_rows.hpp"
#include "distill/detail/encode_kernels.hpp"
#include "parallel/collectives/collectives.hpp"
#include "parallel/parameter_map.hpp"

namespace athanor::distill {
namespace {

__extension__ using Unsigned128 = unsigned __int128;

// Sums of weights up to 2^40 fit 63 bits.
constexpr std::int64_t largest_vocabulary = std::int64_t{1} << 22;

/// One temperature's weights of a chunk: integers whose sums are exact, and what the entropy needs.
struct Weights {
  at::Tensor cumulative_Cv;  ///< int64, inclusive sums over this rank's slice
  at::Tensor first_C;        ///< int64, weight of the slices before this one
  at::Tensor total_C;        ///< int64, weight of the whole vocabulary
  at::Tensor entropy_C;      ///< A
};

Weights weights_of(const at::Tensor& logits_Cv, const at::Tensor& largest_C, double temperature,
                   const parallel::Communicator& tp) {
  const std::int64_t rows = logits_Cv.size(0), vocab = logits_Cv.size(1);
  Weights result;
  result.cumulative_Cv = at::empty({rows, vocab}, at::kLong);
  const at::Tensor own_sums = at::empty({rows, 2}, logits_Cv.options());
  AT_DISPATCH_FLOATING_TYPES(logits_Cv.scalar_type(), "sampling_weights", [&] {
    for (std::int64_t r = 0; r < rows; ++r) {
      detail::sampling_weights(
          logits_Cv.const_data_ptr<scalar_t>() + r * vocab, vocab, largest_C.const_data_ptr<scalar_t>()[r],
          static_cast<scalar_t>(1.0 / temperature), result.cumulative_Cv.data_ptr<std::int64_t>() + r * vocab,
          reinterpret_cast<detail::EntropySums<scalar_t>*>(own_sums.data_ptr<scalar_t>()) + r);
    }
  });
  const at::Tensor own =
      vocab > 0 ? result.cumulative_Cv.select(1, vocab - 1).contiguous() : at::zeros({rows}, at::kLong);
  const at::Tensor all = detail::gather_statistics(own, tp);  // [tp, C]
  result.first_C = all.narrow(0, 0, tp.rank()).sum(0).contiguous();
  result.total_C = all.sum(0).contiguous();
  // H = log sum w - (sum w log w) / (sum w)
  const at::Tensor sums = detail::gather_statistics(own_sums, tp);  // [tp, C, 2]
  at::Tensor total = at::zeros_like(sums.select(0, 0));
  for (std::int64_t rank = 0; rank < sums.size(0); ++rank) {
    total += sums.select(0, rank);
  }
  result.entropy_C = total.select(1, 0).log() - total.select(1, 1) / total.select(1, 0);
  return result;
}

/// Largest logit of each token over all slices.
at::Tensor global_maximum(const at::Tensor& logits_Cv, const parallel::Communicator& tp) {
  const at::Tensor own =
      logits_Cv.size(1) > 0
          ? logits_Cv.amax(1)
          : at::full({logits_Cv.size(0)}, -std::numeric_limits<double>::infinity(), logits_Cv.options());
  return detail::gather_statistics(own, tp).amax(0).contiguous();
}

/// The 64 random bits of draw m: two draws share a block of Philox.
std::uint64_t draw_bits(const base::PhiloxStream& stream, std::int64_t sample, std::int64_t position,
                        std::int64_t m) {
  const auto counter = (static_cast<std::uint64_t>(position) << 16) | static_cast<std::uint64_t>(m / 2);
  const auto block = stream.block(static_cast<std::uint64_t>(sample), counter);
  const std::size_t half = m % 2 == 0 ? 0 : 2;
  return (static_cast<std::uint64_t>(block[half + 1]) << 32) | block[half];
}

/// The ids drawn from this rank's slice (the others -1): int64 [C, M].
at::Tensor draw(const Weights& weights, std::int64_t first_id, std::int64_t samples,
                const TokenPlaces& places, const base::PhiloxStream& stream) {
  const std::int64_t rows = weights.cumulative_Cv.size(0), vocab = weights.cumulative_Cv.size(1);
  const at::Tensor sample_ids = places.sample_ids_C.contiguous(), positions = places.positions_C.contiguous();
  const at::Tensor cumulative = weights.cumulative_Cv;
  at::Tensor drawn = at::full({rows, samples}, -1, at::kLong);
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t* row = cumulative.const_data_ptr<std::int64_t>() + r * vocab;
    const std::int64_t first = weights.first_C.const_data_ptr<std::int64_t>()[r];
    const auto total = static_cast<std::uint64_t>(weights.total_C.const_data_ptr<std::int64_t>()[r]);
    const std::int64_t own = vocab > 0 ? row[vocab - 1] : 0;
    for (std::int64_t m = 0; m < samples; ++m) {
      const std::uint64_t bits = draw_bits(stream, sample_ids.const_data_ptr<std::int64_t>()[r],
                                           positions.const_data_ptr<std::int64_t>()[r], m);
      const auto target = static_cast<std::int64_t>((Unsigned128(bits) * total) >> 64) - first;
      if (target >= 0 && target < own) {
        const std::int64_t index = std::upper_bound(row, row + vocab, target) - row;
        drawn.data_ptr<std::int64_t>()[r * samples + m] = first_id + index;
      }
    }
  }
  return drawn;
}

/// Distinct ids in ascending order with their counts, into ids and counts [.., M] of one token and
/// temperature.
void count_draws(std::int64_t* drawn, std::int64_t samples, std::int32_t* ids, std::int32_t* counts) {
  std::sort(drawn, drawn + samples);
  std::int64_t used = 0;
  for (std::int64_t m = 0; m < samples; ++m) {
    if (m == 0 || drawn[m] != drawn[m - 1]) {
      ids[used] = static_cast<std::int32_t>(drawn[m]);
      counts[used++] = 0;
    }
    ++counts[used - 1];
  }
  std::fill(ids + used, ids + samples, -1);
  std::fill(counts + used, counts + samples, 0);
}

}  // namespace

SampledSignal encode_sampled(const at::Tensor& logits_Cv, std::int64_t first_id, std::int64_t samples,
                             const std::vector<double>& temperatures, const TokenPlaces& places,
                             std::uint64_t seed, const parallel::Communicator& tp) {
  const at::NoGradGuard no_grad;
  const std::int64_t rows = logits_Cv.size(0);
  const auto num_temperatures = static_cast<std::int64_t>(temperatures.size());
  ATHANOR_CHECK(places.sample_ids_C.numel() == rows && places.positions_C.numel() == rows && samples >= 1 &&
                    samples < (std::int64_t{1} << 16) && first_id + logits_Cv.size(1) <= largest_vocabulary,
                "{} draws for {} rows of which {} have a place", samples, rows, places.sample_ids_C.numel());
  const at::Tensor logits = logits_Cv.to(parallel::accumulation_type(logits_Cv.scalar_type())).contiguous();
  const base::PhiloxStream stream(seed, base::RandomPurpose::signal_sampling, "distill.sampled");
  const at::Tensor largest = global_maximum(logits, tp);
  SampledSignal signal;
  signal.ids_NJM = at::empty({rows, num_temperatures, samples}, at::kInt);
  signal.counts_NJM = at::empty({rows, num_temperatures, samples}, at::kInt);
  std::vector<at::Tensor> entropy;
  for (std::int64_t j = 0; j < num_temperatures; ++j) {
    const Weights weights = weights_of(logits, largest, temperatures[static_cast<std::size_t>(j)], tp);
    entropy.push_back(weights.entropy_C);
    at::Tensor drawn = draw(weights, first_id, samples, places, stream);
    parallel::all_reduce_(drawn, parallel::ReduceOp::max, tp, parallel::Traffic::other);
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::int64_t place = (r * num_temperatures + j) * samples;
      count_draws(drawn.data_ptr<std::int64_t>() + r * samples, samples,
                  signal.ids_NJM.data_ptr<std::int32_t>() + place,
                  signal.counts_NJM.data_ptr<std::int32_t>() + place);
    }
  }
  signal.entropy_NJ = at::stack(entropy, 1);
  return signal;
}

}  // namespace athanor::distill
