// Addresses and small transpositions that cuBLAS wants in device memory.
#pragma once

#include "kernels/bodies/body.hpp"

namespace athanor::kernels::bodies {

/// Offsets that travel with a launch: nothing is copied from the host's memory, so it can be captured in a
/// graph.
struct OffsetBatch {
  static constexpr std::int64_t size = 128;
  std::int64_t bytes[size];
};

struct AddressElement {
  const void* base;
  OffsetBatch offsets;
  const void** addresses;
  ATHANOR_BODY void operator()(std::int64_t i) const {
    addresses[i] = static_cast<const char*>(base) + offsets.bytes[i];
  }
};

/// Element i of [columns, rows] from [rows, columns].
struct TransposeElement {
  const float* in;
  std::int64_t rows;
  std::int64_t columns;
  float* out;
  ATHANOR_BODY void operator()(std::int64_t i) const {
    const std::int64_t column = i / rows, row = i - column * rows;
    out[i] = in[row * columns + column];
  }
};

}  // namespace athanor::kernels::bodies
