#include "parallel/collectives/row_units.hpp"

#include <limits>
#include <numeric>

#include "base/checked_cast.hpp"

namespace athanor::parallel {
namespace {

constexpr std::int64_t max_int = std::numeric_limits<int>::max();

}  // namespace

std::int64_t rows_per_unit(std::span<const std::int64_t> rows) {
  std::int64_t total = 0;
  std::int64_t divisor = 0;
  for (const std::int64_t count : rows) {
    total += count;
    divisor = std::gcd(divisor, count);
  }
  return total <= max_int ? 1 : divisor;
}

RowUnits in_units(std::span<const std::int64_t> rows, std::int64_t unit) {
  RowUnits units;
  units.counts.reserve(rows.size());
  units.offsets.reserve(rows.size());
  std::int64_t offset = 0;
  for (const std::int64_t count : rows) {
    units.counts.push_back(base::checked_cast<int>(count / unit, "a count of rows in a message"));
    units.offsets.push_back(base::checked_cast<int>(offset / unit, "an offset of rows in a message"));
    offset += count;
  }
  return units;
}

TypeFactors type_factors(std::int64_t bytes) {
  // Parts of tensors are products of small extents and a power of two, so halving nearly always suffices.
  std::int64_t inner = bytes;
  std::int64_t outer = 1;
  while (inner > max_int && inner % 2 == 0) {
    inner /= 2;
    outer *= 2;
  }
  return {base::checked_cast<int>(inner, "the bytes of a message's unit"),
          base::checked_cast<int>(outer, "the bytes of a message's unit")};
}

}  // namespace athanor::parallel
