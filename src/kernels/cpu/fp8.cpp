#include "kernels/fp8.hpp"

#include "kernels/bodies/fp8.hpp"
#include "kernels/cpu/elements.hpp"

namespace athanor::kernels::cpu {

namespace {

/// Calls function(first, count) for the blocks of a row; `count` is a constant for all but a shorter last
/// one, so that its loops are unrolled.
template <typename Function>
ATHANOR_KERNEL_INLINE void for_each_block(std::int64_t width, const Function& function) {
  std::int64_t first = 0;
  for (; first + fp8_block <= width; first += fp8_block) {
    function(first, fp8_block);
  }
  if (first < width) {
    function(first, width - first);
  }
}

template <typename F>
struct Quantize {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const T* x, Fp8Rows rows, std::uint8_t* codes, float* scales,
                                        Fp8Counts* counts) {
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      const T* in = x + row * rows.width;
      std::uint8_t* out = codes + row * rows.code_stride;
      float* scale = scales + row * rows.scale_stride;
      for_each_block(rows.width, [=](std::int64_t first, std::int64_t count) [[gnu::always_inline]] {
        block(in + first, count, out + first, scale + first / fp8_block, counts);
      });
    }
  }

  template <typename T>
  ATHANOR_KERNEL_INLINE static void block(const T* __restrict x, std::int64_t count,
                                          std::uint8_t* __restrict codes, float* scale, Fp8Counts* counts) {
    std::int32_t largest = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t magnitude = bodies::magnitude_of(x[i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    if (bodies::is_nonfinite_block(largest)) {
      for (std::int64_t i = 0; i < count; ++i) {
        codes[i] = bodies::fp8_nan_code;
      }
      *scale = std::numeric_limits<float>::quiet_NaN();
      ++counts->nonfinite;
      return;
    }
    const float divisor = bodies::scale_of<F>(largest);
    std::int32_t underflow = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      codes[i] = bodies::code_of<F>(x[i], divisor, &underflow);
    }
    *scale = divisor;
    counts->underflow += underflow;
  }
};

template <typename F>
struct Dequantize {
  template <typename T>
  ATHANOR_KERNEL_INLINE static void run(const std::uint8_t* codes, const float* scales, Fp8Rows rows, T* x) {
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      const std::uint8_t* in = codes + row * rows.code_stride;
      const float* scale = scales + row * rows.scale_stride;
      T* out = x + row * rows.width;
      for_each_block(rows.width, [=](std::int64_t first, std::int64_t count) [[gnu::always_inline]] {
        block(in + first, scale[first / fp8_block], count, out + first);
      });
    }
  }

  template <typename T>
  ATHANOR_KERNEL_INLINE static void block(const std::uint8_t* __restrict codes, float scale,
                                          std::int64_t count, T* __restrict x) {
    for (std::int64_t i = 0; i < count; ++i) {
      x[i] = store<T>(bodies::decode<F>(codes[i]) * scale);
    }
  }
};

template <typename F>
struct AddQuantized {
  ATHANOR_KERNEL_INLINE static void run(const std::uint8_t* codes, const float* scales, Fp8Rows rows,
                                        float* sum) {
    for (std::int64_t row = 0; row < rows.rows; ++row) {
      const std::uint8_t* in = codes + row * rows.code_stride;
      const float* scale = scales + row * rows.scale_stride;
      float* out = sum + row * rows.width;
      for_each_block(rows.width, [=](std::int64_t first, std::int64_t count) [[gnu::always_inline]] {
        block(in + first, scale[first / fp8_block], count, out + first);
      });
    }
  }

  ATHANOR_KERNEL_INLINE static void block(const std::uint8_t* __restrict codes, float scale,
                                          std::int64_t count, float* __restrict sum) {
    for (std::int64_t i = 0; i < count; ++i) {
      sum[i] += bodies::decode<F>(codes[i]) * scale;
    }
  }
};

template <template <typename> typename Body, typename... Args>
void dispatch_format(base::Fp8Format format, Args... args) {
  if (format == base::Fp8Format::e4m3) {
    dispatch<Body<bodies::E4m3>>(args...);
  } else {
    dispatch<Body<bodies::E5m2>>(args...);
  }
}

}  // namespace

template <typename T>
void quantize_fp8_blocks(const T* x, const Fp8Rows& rows, base::Fp8Format format, std::uint8_t* codes,
                         float* scales, Fp8Counts& counts) {
  dispatch_format<Quantize>(format, x, rows, codes, scales, &counts);
}

template <typename T>
void dequantize_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                           base::Fp8Format format, T* x) {
  dispatch_format<Dequantize>(format, codes, scales, rows, x);
}

void add_fp8_blocks(const std::uint8_t* codes, const float* scales, const Fp8Rows& rows,
                    base::Fp8Format format, float* sum) {
  dispatch_format<AddQuantized>(format, codes, scales, rows, sum);
}

#define ATHANOR_INSTANTIATE(T)                                                                               \
  template void quantize_fp8_blocks<T>(const T*, const Fp8Rows&, base::Fp8Format, std::uint8_t*, float*,     \
                                       Fp8Counts&);                                                          \
  template void dequantize_fp8_blocks<T>(const std::uint8_t*, const float*, const Fp8Rows&, base::Fp8Format, \
                                         T*);
ATHANOR_INSTANTIATE(float)
ATHANOR_INSTANTIATE(c10::BFloat16)
ATHANOR_INSTANTIATE(c10::Half)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cpu
