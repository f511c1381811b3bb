// A range cut into parts, the same for every device.
#pragma once

#include "kernels/bodies/body.hpp"

namespace athanor::kernels::bodies {

ATHANOR_BODY constexpr std::int64_t ceil_divide(std::int64_t n, std::int64_t by) {
  return n / by + (n % by != 0 ? 1 : 0);
}

/// Part `part` of [0, n) cut into ranges of `size`: the last may be shorter, parts behind it are empty.
struct Part {
  std::int64_t first;
  std::int64_t count;

  ATHANOR_BODY static Part of(std::int64_t n, std::int64_t part, std::int64_t size) {
    const std::int64_t first = part * size < n ? part * size : n;
    return {first, n - first < size ? n - first : size};
  }
};

}  // namespace athanor::kernels::bodies
