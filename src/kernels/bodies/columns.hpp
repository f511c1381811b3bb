// Sums over many rows for every column: at most `column_parts` ranges of rows first, then the ranges.
//
// A body gives the terms: body.term(row, column). A range's rows are added by warp_lanes lanes as HostTeam
// says, and so are the ranges, so a sum depends on the number of rows alone.
#pragma once

#include "kernels/bodies/part.hpp"
#include "kernels/bodies/team.hpp"
#include "kernels/norm.hpp"

namespace athanor::kernels::bodies {

/// Ranges that rows are divided into.
inline constexpr std::int64_t column_parts = norm_partials;

/// partial [column_parts, columns] as terms of the second step; out[c] += their sum.
template <typename A>
struct ColumnOfParts {
  using Sum = A;
  const A* partial;
  std::int64_t columns;
  A* out;
  ATHANOR_BODY A term(std::int64_t part, std::int64_t c) const { return partial[part * columns + c]; }
  ATHANOR_BODY void finish(std::int64_t /*part*/, std::int64_t c, A sum) const { out[c] += sum; }
};

/// A body whose sums over one range of rows are kept for the second step.
template <typename Body>
struct PartialColumn {
  using Sum = typename Body::Sum;
  Body body;
  std::int64_t columns;
  Sum* partial;
  ATHANOR_BODY Sum term(std::int64_t row, std::int64_t c) const { return body.term(row, c); }
  ATHANOR_BODY void finish(std::int64_t part, std::int64_t c, Sum sum) const {
    partial[part * columns + c] = sum;
  }
};

/// Rows cut into parts of `rows_per_part`, each summed for itself.
struct ColumnShape {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t rows_per_part;

  constexpr std::int64_t parts() const { return rows == 0 ? 0 : ceil_divide(rows, rows_per_part); }
  /// The two steps of a sum over all rows.
  static constexpr ColumnShape first_step(std::int64_t rows, std::int64_t columns) {
    return {rows, columns, ceil_divide(rows, column_parts)};
  }
  constexpr ColumnShape second_step() const { return {parts(), columns, parts()}; }
};

/// One step on the host: body.finish(part, column, sum) for every part and column.
template <typename Body>
void run_column_step(const Body& body, const ColumnShape& shape) {
  const HostTeam<warp_lanes> team;
  for (std::int64_t part = 0; part < shape.parts(); ++part) {
    const Part range = Part::of(shape.rows, part, shape.rows_per_part);
    for (std::int64_t c = 0; c < shape.columns; ++c) {
      body.finish(part, c, team_sum<typename Body::Sum>(team, range.count, [&](std::int64_t i) {
                    return body.term(range.first + i, c);
                  }));
    }
  }
}

/// out[c] += sum over rows of body.term(row, c): the host's form of cuda::launch_columns(). `partial` has
/// room for [column_parts, columns].
template <typename Body>
void run_columns(const Body& body, std::int64_t rows, std::int64_t columns, typename Body::Sum* partial,
                 typename Body::Sum* out) {
  const ColumnShape shape = ColumnShape::first_step(rows, columns);
  run_column_step(PartialColumn<Body>{body, columns, partial}, shape);
  run_column_step(ColumnOfParts<typename Body::Sum>{partial, columns, out}, shape.second_step());
}

}  // namespace athanor::kernels::bodies
