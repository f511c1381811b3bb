#include "kernels/permute.hpp"

#include "kernels/bodies/permute.hpp"
#include "kernels/cuda/device_team.cuh"

namespace athanor::kernels::cuda {

namespace {

/// As many bytes as a thread copies at a time.
template <int Bytes>
struct alignas(Bytes) CopyUnit {
  unsigned char bytes[Bytes];
};

template <int Bytes>
void permute_units(const void* x, const std::int64_t* source_row, std::int64_t rows, std::size_t row_bytes,
                   void* out, device::StreamHandle stream) {
  using Unit = CopyUnit<Bytes>;
  launch_rows(bodies::PermuteRow<Unit>{static_cast<const Unit*>(x), source_row,
                                       static_cast<std::int64_t>(row_bytes / Bytes), static_cast<Unit*>(out)},
              rows, stream, "permute_tokens");
}

}  // namespace

template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width, T* out,
                    device::StreamHandle stream) {
  const std::size_t row_bytes = static_cast<std::size_t>(width) * sizeof(T);
  if (row_bytes == 0) {
    return;
  }
  switch (copy_unit(row_bytes, x, out)) {
    case 16:
      return permute_units<16>(x, source_row, rows, row_bytes, out, stream);
    case 8:
      return permute_units<8>(x, source_row, rows, row_bytes, out, stream);
    case 4:
      return permute_units<4>(x, source_row, rows, row_bytes, out, stream);
    default:
      return permute_units<2>(x, source_row, rows, row_bytes, out, stream);  // the smallest element has two
  }
}

template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y, device::StreamHandle stream) {
  launch_rows(bodies::CombineRow<T>{x, slot, gates, choices, width, y}, width == 0 ? 0 : tokens, stream,
              "combine_rows");
}

template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates, device::StreamHandle stream) {
  launch_rows(bodies::CombineRowBackward<T>{dy, x, slot, gates, choices, width, dx, dgates}, tokens * choices,
              stream, "combine_rows_backward");
}

template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out, device::StreamHandle stream) {
  launch_rows(bodies::AddOwnedRows<T>{x, row, rows, width, out},
              rows == 0 || width == 0 ? 0 : bodies::add_rows_owners, stream, "add_rows");
}

#define ATHANOR_INSTANTIATE(T)                                                                              \
  template void permute_tokens<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, T*,            \
                                  device::StreamHandle);                                                    \
  template void combine_rows<T>(const T*, const std::int64_t*, const accumulation_t<T>*, std::int64_t,      \
                                std::int64_t, std::int64_t, T*, device::StreamHandle);                      \
  template void combine_rows_backward<T>(const T*, const T*, const std::int64_t*, const accumulation_t<T>*, \
                                         std::int64_t, std::int64_t, std::int64_t, T*, accumulation_t<T>*,  \
                                         device::StreamHandle);                                             \
  template void add_rows<T>(const T*, const std::int64_t*, std::int64_t, std::int64_t, accumulation_t<T>*,  \
                            device::StreamHandle);
ATHANOR_FOR_EACH_ELEMENT(ATHANOR_INSTANTIATE)
#undef ATHANOR_INSTANTIATE

}  // namespace athanor::kernels::cuda
