#include "kernels/permute.hpp"

#include <cstring>

#include "kernels/bodies/permute.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

struct CombineRows {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void add(const T* __restrict row, A gate, std::int64_t count,
                                        A* __restrict sum) {
    for (std::int64_t c = 0; c < count; ++c) {
      sum[c] = bodies::add_weighted(sum[c], gate, row[c]);
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* x, const std::int64_t* slot, const A* gates,
                                        std::int64_t tokens, std::int64_t choices, std::int64_t width, T* y) {
    constexpr std::int64_t block = 256;  // columns summed at a time: the sums stay in the first-level cache
    A sum[block];
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t first = 0; first < width; first += block) {
        const std::int64_t count = width - first < block ? width - first : block;
        for (std::int64_t c = 0; c < count; ++c) {
          sum[c] = A(0);
        }
        for (std::int64_t j = t * choices; j < (t + 1) * choices; ++j) {
          if (slot[j] >= 0) {
            add(x + slot[j] * width + first, gates == nullptr ? A(1) : gates[j], count, sum);
          }
        }
        T* out = y + t * width + first;
        for (std::int64_t c = 0; c < count; ++c) {
          out[c] = store<T>(sum[c]);
        }
      }
    }
  }
};

struct CombineRowsBackward {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void scale(const T* __restrict dy, A gate, std::int64_t width,
                                          T* __restrict dx) {
    for (std::int64_t c = 0; c < width; ++c) {
      dx[c] = store<T>(gate * load(dy[c]));
    }
  }

  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* dy, const T* x, const std::int64_t* slot, const A* gates,
                                        std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                                        A* dgates) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t j = t * choices; j < (t + 1) * choices; ++j) {
        if (slot[j] >= 0) {
          scale(dy + t * width, gates == nullptr ? A(1) : gates[j], width, dx + slot[j] * width);
        }
        if (dgates != nullptr) {
          dgates[j] = slot[j] < 0 ? A(0) : dot<A>(dy + t * width, x + slot[j] * width, width);
        }
      }
    }
  }
};

struct AddRows {
  template <typename T, typename A>
  ATHANOR_KERNEL_INLINE static void run(const T* x, const std::int64_t* row, std::int64_t rows,
                                        std::int64_t width, A* out) {
    for (std::int64_t i = 0; i < rows; ++i) {
      if (row[i] >= 0) {
        CombineRows::add(x + i * width, A(1), width, out + row[i] * width);
      }
    }
  }
};

}  // namespace

template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width,
                    T* out) {
  const std::size_t row_bytes = static_cast<std::size_t>(width) * sizeof(T);
  for (std::int64_t i = 0; i < rows && row_bytes > 0; ++i) {
    std::memcpy(static_cast<void*>(out + i * width), static_cast<const void*>(x + source_row[i] * width),
                row_bytes);
  }
}

template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y) {
  dispatch<CombineRows>(x, slot, gates, tokens, choices, width, y);
}

template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates) {
  dispatch<CombineRowsBackward>(dy, x, slot, gates, tokens, choices, width, dx, dgates);
}

template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out) {
  dispatch<AddRows>(x, row, rows, width, out);
}

#define ATHANOR_INSTANTIATE(T)                                                                              \
  template void add_rows<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, accumulation_t<T>*); \
  template void permute_tokens<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, T*);           \
  template void combine_rows<T>(const T*, const std::int64_t*, const accumulation_t<T>*, std::int64_t,      \
                                std::int64_t, std::int64_t, T*);                                            \
  template void combine_rows_backward<T>(const T*, const T*, const std::int64_t*, const accumulation_t<T>*, \
                                         std::int64_t, std::int64_t, std::int64_t, T*, accumulation_t<T>*);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
