// Row kernels of the encoders.
#pragma once

#include <cstdint>

#include "kernels/element.hpp"

namespace athanor::distill::detail {

using kernels::accumulation_t;

/// Columns whose maximum block_maxima() writes as one number.
inline constexpr std::int64_t maximum_block = 64;

/// Largest of each block of a row of `n` logits (NaN passed over): ceil(n / maximum_block) numbers.
template <typename T>
void block_maxima(const T* row, std::int64_t n, accumulation_t<T>* maxima);

/// Sums over a row's slice with w = e^((u - maximum) / t): of w and of w (u - maximum) / t.
template <typename A>
struct EntropySums {
  A weight;
  A weighted_log;
};

/// cumulative[i] = sum over j <= i of round(w_j * 2^40), exact. Each w has the same bits wherever in a slice
/// it stands.
template <typename A>
void sampling_weights(const A* row, std::int64_t n, A maximum, A inverse_t, std::int64_t* cumulative,
                      EntropySums<A>* sums);

}  // namespace athanor::distill::detail
