// Narrowing integer conversions that throw instead of wrapping.
#pragma once

#include <limits>
#include <string_view>
#include <utility>

#include "base/error.hpp"

namespace athanor::base {

/// `value` as To; throws InternalError naming `what` when it does not fit (e.g. an MPI count beyond int).
template <typename To, typename From>
To checked_cast(From value, std::string_view what) {
  if (!std::in_range<To>(value)) {
    throw InternalError("{} is {} (it must fit a {}-bit integer) use smaller messages or batches", what,
                        value, sizeof(To) * 8);
  }
  return static_cast<To>(value);
}

}  // namespace athanor::base
