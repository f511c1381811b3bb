#include "kernels/permute.hpp"

namespace athanor::kernels::reference {

template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width,
                    T* out) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; c < width; ++c) {
      out[i * width + c] = x[source_row[i] * width + c];
    }
  }
}

template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y) {
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < width; ++c) {
      T sum = 0;
      for (std::int64_t j = t * choices; j < (t + 1) * choices; ++j) {
        if (slot[j] >= 0) {
          sum += (gates == nullptr ? T(1) : gates[j]) * x[slot[j] * width + c];
        }
      }
      y[t * width + c] = sum;
    }
  }
}

template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates) {
  for (std::int64_t j = 0; j < tokens * choices; ++j) {
    const T* dy_row = dy + j / choices * width;
    T dgate = 0;
    for (std::int64_t c = 0; slot[j] >= 0 && c < width; ++c) {
      dx[slot[j] * width + c] = (gates == nullptr ? T(1) : gates[j]) * dy_row[c];
      if (dgates != nullptr) {
        dgate += dy_row[c] * x[slot[j] * width + c];
      }
    }
    if (dgates != nullptr) {
      dgates[j] = dgate;
    }
  }
}

template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t c = 0; row[i] >= 0 && c < width; ++c) {
      out[row[i] * width + c] += x[i * width + c];
    }
  }
}

#define ATHANOR_INSTANTIATE(T)                                                                              \
  template void add_rows<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, accumulation_t<T>*); \
  template void permute_tokens<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, T*);           \
  template void combine_rows<T>(const T*, const std::int64_t*, const accumulation_t<T>*, std::int64_t,      \
                                std::int64_t, std::int64_t, T*);                                            \
  template void combine_rows_backward<T>(const T*, const T*, const std::int64_t*, const accumulation_t<T>*, \
                                         std::int64_t, std::int64_t, std::int64_t, T*, accumulation_t<T>*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(double)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::reference
