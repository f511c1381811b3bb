#include "kernels/cross_entropy.hpp"

#include "kernels/bodies/cross_entropy.hpp"
#include "kernels/cpu/elements.hpp"
#include "kernels/cpu/lanes.hpp"

namespace athanor::kernels::cpu {

namespace {

struct Statistics {
  /// As row_maximum().
  template <typename A, typename T>
  ATHANOR_KERNEL_INLINE static A largest_of(const T* x, std::int64_t n) {
    if constexpr (has_lanes<T>) {
      Lanes largest = Lanes{} - std::numeric_limits<float>::infinity();
      std::int64_t i = 0;
      for (; i + num_lanes <= n; i += num_lanes) {
        Lanes values;
        load_lanes(x + i, values);
        largest = values > largest ? values : largest;
      }
      A lane[num_lanes];
      store_lanes(largest, lane);
      const A rest = row_maximum<A>(x + i, n - i);
      const A whole = row_maximum<A>(lane, num_lanes);
      return rest > whole ? rest : whole;
    } else {
      return row_maximum<A>(x, n);
    }
  }

  template <typename A, typename T>
  ATHANOR_KERNEL_INLINE static A sum_exp(const T* x, A largest, std::int64_t n) {
    LaneSum<A> sum;
    constexpr int lanes = LaneSum<A>::width;
    std::int64_t i = 0;
    if constexpr (has_lanes<T>) {
      Lanes sums = {};
      for (; i + lanes <= n; i += lanes) {
        Lanes values;
        load_lanes(x + i, values);
        values -= largest;
        exp_lanes(values);
        sums += values;
      }
      store_lanes(sums, sum.lane);
    }
    for (; i + lanes <= n; i += lanes) {
      for (int j = 0; j < lanes; ++j) {
        sum.lane[j] += fast_exp(load(x[i + j]) - largest);
      }
    }
    for (int j = 0; i < n; ++i, ++j) {
      sum.lane[j] += fast_exp(load(x[i]) - largest);
    }
    return sum.total();
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* logits, const std::int64_t* labels, std::int64_t rows,
                                        std::int64_t vocab, SoftmaxStatistics<A>* statistics) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* row = logits + r * vocab;
      const A largest = largest_of<A>(row, vocab);
      const bool here = labels[r] >= 0 && labels[r] < vocab;
      statistics[r] = {largest, sum_exp<A>(row, largest, vocab), here ? load(row[labels[r]]) : A(0)};
    }
  }
};

struct CrossEntropyBackward {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(T* logits, const std::int64_t* labels, const A* maximum,
                                        const A* inverse_sum, std::int64_t rows, std::int64_t vocab,
                                        A gradient_scale) {
    for (std::int64_t r = 0; r < rows; ++r) {
      T* row = logits + r * vocab;
      const A largest = maximum[r];
      const A scale = inverse_sum[r] * gradient_scale;
      if (scale == A(0)) {
        for (std::int64_t c = 0; c < vocab; ++c) {
          row[c] = store<T>(A(0));
        }
        continue;
      }
      const bool here = labels[r] >= 0 && labels[r] < vocab;
      // The label's probability stays in the accumulation type until 1 is subtracted.
      const A target =
          here ? bodies::scaled_probability(row[labels[r]], largest, scale) - gradient_scale : A(0);
      std::int64_t c = 0;
      if constexpr (std::is_same_v<T, float>) {  // 16-bit results are stored faster by the plain loop
        for (; c + num_lanes <= vocab; c += num_lanes) {
          Lanes values;
          load_lanes(row + c, values);
          values -= largest;
          exp_lanes(values);
          values *= scale;
          store_lanes(values, row + c);
        }
      }
      for (; c < vocab; ++c) {
        row[c] = store<T>(bodies::scaled_probability(row[c], largest, scale));
      }
      if (here) {
        row[labels[r]] = store<T>(target);
      }
    }
  }
};

}  // namespace

template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics) {
  dispatch<Statistics>(logits, labels, rows, vocab, statistics);
}

template <typename A>
void join_softmax_statistics(const SoftmaxStatistics<A>* statistics, std::int64_t slices, std::int64_t rows,
                             const bool* ignored, A* maximum, A* inverse_sum, A* loss) {
  bodies::run_elements(
      bodies::JoinSoftmaxRow<A>{statistics, slices, rows, ignored, maximum, inverse_sum, loss}, rows);
}
template void join_softmax_statistics(const SoftmaxStatistics<float>*, std::int64_t, std::int64_t,
                                      const bool*, float*, float*, float*);
template void join_softmax_statistics(const SoftmaxStatistics<double>*, std::int64_t, std::int64_t,
                                      const bool*, double*, double*, double*);

template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale) {
  dispatch<CrossEntropyBackward>(logits, labels, maximum, inverse_sum, rows, vocab, gradient_scale);
}

#define ATHANOR_INSTANTIATE(T)                                                                   \
  template void softmax_statistics<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, \
                                      SoftmaxStatistics<accumulation_t<T>>*);                    \
  template void cross_entropy_backward<T>(T*, const std::int64_t*, const accumulation_t<T>*,     \
                                          const accumulation_t<T>*, std::int64_t, std::int64_t,  \
                                          accumulation_t<T>);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
