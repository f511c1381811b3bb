// From the number formats of options to ATen's.
#pragma once

#include <c10/core/ScalarType.h>

#include "base/precision.hpp"

namespace athanor::parallel {

inline at::ScalarType scalar_type(base::ComputeType type) {
  switch (type) {
    case base::ComputeType::f32:
      return at::kFloat;
    case base::ComputeType::bf16:
      return at::kBFloat16;
    case base::ComputeType::fp16:
      return at::kHalf;
    case base::ComputeType::f64:
      return at::kDouble;
  }
  return at::kFloat;
}

}  // namespace athanor::parallel
