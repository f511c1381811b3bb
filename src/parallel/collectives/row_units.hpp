// Row counts as MPI wants them: int, however large the tensors are.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace athanor::parallel {

/// How many rows one counted unit holds: 1 while all rows together fit an int, else the counts' greatest
/// common divisor (flat buckets are padded to equal parts, so that is large).
std::int64_t rows_per_unit(std::span<const std::int64_t> rows);

/// Counts by rank and their running sums, in units.
struct RowUnits {
  std::vector<int> counts;
  std::vector<int> offsets;
};
/// Throws InternalError when a count or offset does not fit an int.
RowUnits in_units(std::span<const std::int64_t> rows, std::int64_t unit);

/// inner * outer == bytes, both within int.
struct TypeFactors {
  int inner = 1;
  int outer = 1;
};
/// Throws InternalError when there are no such factors.
TypeFactors type_factors(std::int64_t bytes);

}  // namespace athanor::parallel
