// Moving rows: gather by index, and the weighted sum of several rows for each token with its backward.
//
// Legend: T tokens, K choices, R rows, W width. All arrays are dense and row-major. Element types of `cpu`:
// f32, f64, bf16, fp16; of `reference`: f32, f64. Indices are not checked.
#pragma once

#include <cstdint>

#include "device/stream_handle.hpp"
#include "kernels/element.hpp"

namespace athanor::kernels {

namespace cpu {

/// out[i] = x[source_row[i]] for i in [0, rows).
template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width,
                    T* out);

/// y[t] = sum over j = 0 .. K-1, in this order and in the accumulation type, of gates[t*K+j] *
/// x[slot[t*K+j]]; a negative slot contributes nothing. gates == nullptr: all 1 (the backward of
/// permute_tokens).
template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y);

/// dx[slot[t*K+j]] = gates[t*K+j] * dy[t] and dgates[t*K+j] = <dy[t], x[slot[t*K+j]]> (0 for a negative
/// slot). Rows of dx that no slot names are not written. gates == nullptr: all 1; dgates (and then x) may be
/// nullptr.
template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates);

/// out[row[i]] += x[i] for i = 0 .. rows-1, in this order; negative rows are skipped. out is in the
/// accumulation type.
template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out);

}  // namespace cpu

// Defined in a build with CUDA only. Pointers are to the device's memory; a call only queues its work on
// `stream`, and throws DeviceError when that is refused.
namespace cuda {

template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width, T* out,
                    device::StreamHandle stream);
template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y, device::StreamHandle stream);
template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates, device::StreamHandle stream);
/// The terms of one row of `out` are added in ascending order, without atomics.
template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out, device::StreamHandle stream);

}  // namespace cuda

namespace reference {

template <typename T>
void permute_tokens(const T* x, const std::int64_t* source_row, std::int64_t rows, std::int64_t width,
                    T* out);
template <typename T>
void combine_rows(const T* x, const std::int64_t* slot, const accumulation_t<T>* gates, std::int64_t tokens,
                  std::int64_t choices, std::int64_t width, T* y);
template <typename T>
void combine_rows_backward(const T* dy, const T* x, const std::int64_t* slot, const accumulation_t<T>* gates,
                           std::int64_t tokens, std::int64_t choices, std::int64_t width, T* dx,
                           accumulation_t<T>* dgates);

template <typename T>
void add_rows(const T* x, const std::int64_t* row, std::int64_t rows, std::int64_t width,
              accumulation_t<T>* out);

}  // namespace reference

}  // namespace athanor::kernels
