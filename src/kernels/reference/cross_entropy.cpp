#include "kernels/cross_entropy.hpp"

#include <cmath>
#include <limits>

namespace athanor::kernels::reference {

template <typename T>
void softmax_statistics(const T* logits, const std::int64_t* labels, std::int64_t rows, std::int64_t vocab,
                        SoftmaxStatistics<accumulation_t<T>>* statistics) {
  for (std::int64_t r = 0; r < rows; ++r) {
    SoftmaxStatistics<T> row{-std::numeric_limits<T>::infinity(), 0, 0};
    for (std::int64_t c = 0; c < vocab; ++c) {
      row.maximum = std::fmax(row.maximum, logits[r * vocab + c]);
    }
    double sum = 0.0;
    for (std::int64_t c = 0; c < vocab; ++c) {
      sum += std::exp(static_cast<double>(logits[r * vocab + c]) - static_cast<double>(row.maximum));
      if (c == labels[r]) {
        row.target = logits[r * vocab + c];
      }
    }
    row.sum_exp = static_cast<T>(sum);
    statistics[r] = row;
  }
}

template <typename T>
void cross_entropy_backward(T* logits, const std::int64_t* labels, const accumulation_t<T>* maximum,
                            const accumulation_t<T>* inverse_sum, std::int64_t rows, std::int64_t vocab,
                            accumulation_t<T> gradient_scale) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < vocab; ++c) {
      const double logit = logits[r * vocab + c];
      const double probability = std::exp(logit - static_cast<double>(maximum[r])) * inverse_sum[r];
      const double target = c == labels[r] && inverse_sum[r] != T(0) ? 1.0 : 0.0;
      logits[r * vocab + c] = static_cast<T>(gradient_scale * (probability - target));
    }
  }
}

#define ATHANOR_INSTANTIATE(T)                                                                   \
  template void softmax_statistics<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, \
                                      SoftmaxStatistics<accumulation_t<T>>*);                    \
  template void cross_entropy_backward<T>(T*, const std::int64_t*, const accumulation_t<T>*,     \
                                          const accumulation_t<T>*, std::int64_t, std::int64_t,  \
                                          accumulation_t<T>);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
