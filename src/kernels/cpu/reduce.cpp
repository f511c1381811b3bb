#include "kernels/reduce.hpp"

#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

struct SumOfSquares {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const T* x, std::int64_t n, double* out) {
    *out = dot<double>(x, x, n);
  }
};

struct HasNonfinite {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const T* x, std::int64_t n, bool* out) {
    // x - x is 0 for finite x and NaN otherwise, which no later addition removes.
    LaneSum<accumulation_t<T>> sum;
    constexpr int width = LaneSum<accumulation_t<T>>::width;
    std::int64_t i = 0;
    for (; i + width <= n; i += width) {
      for (int j = 0; j < width; ++j) {
        sum.lane[j] += load(x[i + j]) - load(x[i + j]);
      }
    }
    for (int j = 0; i < n; ++i, ++j) {
      sum.lane[j] += load(x[i]) - load(x[i]);
    }
    const accumulation_t<T> total = sum.total();
    *out = total != total;
  }
};

}  // namespace

template <typename T>
double sum_of_squares(const T* x, std::int64_t n) {
  double sum = 0.0;
  dispatch<SumOfSquares>(x, n, &sum);
  return sum;
}

template <typename T>
void squares_of_parts(const T* x, std::int64_t n, std::int64_t part_size, double* sums) {
  for (std::int64_t first = 0; first < n; first += part_size) {
    sums[first / part_size] = sum_of_squares(x + first, std::min(part_size, n - first));
  }
}

template <typename T>
bool has_nonfinite(const T* x, std::int64_t n) {
  bool found = false;
  dispatch<HasNonfinite>(x, n, &found);
  return found;
}

#define ATHANOR_INSTANTIATE(T)                                                      \
  template double sum_of_squares<T>(const T*, std::int64_t);                        \
  template void squares_of_parts<T>(const T*, std::int64_t, std::int64_t, double*); \
  template bool has_nonfinite<T>(const T*, std::int64_t);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
