#include "distill/detail/encode_kernels.hpp"

#include <algorithm>
#include <limits>

#include "distill/detail/row_math.hpp"

namespace athanor::distill::detail {
namespace {

struct BlockMaxima {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* row, std::int64_t n, A* maxima) {
    for (std::int64_t first = 0; first < n; first += maximum_block) {
      const std::int64_t count = n - first < maximum_block ? n - first : maximum_block;
      *maxima++ = kernels::cpu::row_maximum<A>(row + first, count);
    }
  }
};

struct SamplingWeights {
  static constexpr int width = LaneSum<float>::width;

  template <typename A>
  ATHANOR_KERNEL_INLINE static void one_block(const A* row, A maximum, A inverse_t, std::int64_t* weights,
                                              LaneSum<A>& sum, LaneSum<A>& logs) {
    for (int j = 0; j < width; ++j) {
      const A x = (row[j] - maximum) * inverse_t;
      const A w = fast_exp(x);
      const A term = w * x;
      sum.lane[j] += w;
      logs.lane[j] += w == A(0) ? A(0) : term;  // a padded column is -infinity
      weights[j] = w >= A(0) ? static_cast<std::int64_t>(w * A(0x1.0p40) + A(0.5)) : 0;  // NaN counts nothing
    }
  }

  template <typename A>
  ATHANOR_KERNEL_INLINE static void run(const A* row, std::int64_t n, A maximum, A inverse_t,
                                        std::int64_t* cumulative, EntropySums<A>* sums) {
    LaneSum<A> sum, logs;
    std::int64_t running = 0;
    for (std::int64_t first = 0; first < n; first += width) {
      const std::int64_t count = n - first < width ? n - first : width;
      // A short last block goes through the same code, filled up: the bits of a weight must not depend on its
      // place.
      A filled[width];
      std::int64_t weights[width];
      const A* block = row + first;
      if (count < width) {
        for (int j = 0; j < width; ++j) {
          filled[j] = j < count ? block[j] : -std::numeric_limits<A>::infinity();
        }
        block = filled;
      }
      one_block(block, maximum, inverse_t, weights, sum, logs);
      for (std::int64_t j = 0; j < count; ++j) {
        running += weights[j];
        cumulative[first + j] = running;
      }
    }
    *sums = {sum.total(), logs.total()};
  }
};

}  // namespace

template <typename T>
void block_maxima(const T* row, std::int64_t n, accumulation_t<T>* maxima) {
  kernels::cpu::dispatch<BlockMaxima>(row, n, maxima);
}

template <typename A>
void sampling_weights(const A* row, std::int64_t n, A maximum, A inverse_t, std::int64_t* cumulative,
                      EntropySums<A>* sums) {
  kernels::cpu::dispatch<SamplingWeights>(row, n, maximum, inverse_t, cumulative, sums);
}

#define ATHANOR_INSTANTIATE(T) template void block_maxima<T>(const T*, std::int64_t, accumulation_t<T>*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

template void sampling_weights<float>(const float*, std::int64_t, float, float, std::int64_t*,
                                      EntropySums<float>*);
template void sampling_weights<double>(const double*, std::int64_t, double, double, std::int64_t*,
                                       EntropySums<double>*);

}  // namespace athanor::distill::detail
