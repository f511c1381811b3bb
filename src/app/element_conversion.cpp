#include "app/element_conversion.hpp"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>

#include "base/error.hpp"

namespace athanor::app {
namespace {

template <typename To, typename From>
std::int64_t convert(const From* from, std::int64_t count, To* to) {
  std::int64_t bad = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<To>(static_cast<float>(from[i]));
    if (!std::isfinite(static_cast<float>(to[i])) && bad < 0) {
      bad = i;
    }
  }
  return bad;
}

}  // namespace

using checkpoint::ElementType;

std::int64_t to_f32(const void* from, ElementType type, std::int64_t count, float* to) {
  switch (type) {
    case ElementType::f64:
      return convert(static_cast<const double*>(from), count, to);
    case ElementType::f32:
      return convert(static_cast<const float*>(from), count, to);
    case ElementType::bf16:
      return convert(static_cast<const c10::BFloat16*>(from), count, to);
    case ElementType::f16:
      return convert(static_cast<const c10::Half*>(from), count, to);
    case ElementType::i64:
      break;
  }
  throw base::InternalError("weights of type {} are not converted", element_type_name(type));
}

std::int64_t from_f32(const float* from, std::int64_t count, ElementType type, void* to) {
  switch (type) {
    case ElementType::f32:
      return convert(from, count, static_cast<float*>(to));
    case ElementType::bf16:
      return convert(from, count, static_cast<c10::BFloat16*>(to));
    case ElementType::f16:
      return convert(from, count, static_cast<c10::Half*>(to));
    default:
      throw base::InternalError("weights are not converted to {}", element_type_name(type));
  }
}

}  // namespace athanor::app
