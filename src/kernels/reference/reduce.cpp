#include "kernels/reduce.hpp"

#include <cmath>

namespace athanor::kernels::reference {

template <typename T>
double sum_of_squares(const T* x, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  }
  return sum;
}

template <typename T>
bool has_nonfinite(const T* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) {
      return true;
    }
  }
  return false;
}

template double sum_of_squares<float>(const float*, std::int64_t);
template double sum_of_squares<double>(const double*, std::int64_t);
template bool has_nonfinite<float>(const float*, std::int64_t);
template bool has_nonfinite<double>(const double*, std::int64_t);

}  // namespace athanor::kernels::reference
