// The columns of a mask in the order in which the weight gradient takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "stream.hpp"

namespace transposable {

// For each group of rows and each slab of columns, the columns that some row keeps, by ascending type
// (bit r: row r of the group keeps it), then by place: type << 16 | place in the slab. What is left of
// a slab's entries is 0. A group has kGradientRows rows; for streams of lower blocks it has
// kFewGradientRows if else there were less than kFewestAlike columns of one type on average.
inline constexpr int kFewGradientRows = 4, kFewestAlike = 3;

struct GradientColumns {
  std::int64_t groups, slabs, slab;
  const std::uint32_t* columns;  // [groups][slabs][slab]
};
struct GradientOrder {
  std::int64_t groups, slabs, slab;
  std::vector<std::uint32_t> columns;

  GradientColumns view() const { return {groups, slabs, slab, columns.data()}; }
};
GradientOrder gradient_order(const StreamView& stream, int threads);

// Rows of a group, of which a matrix has so many; of one group all rows.
inline int rows_of_groups(std::int64_t groups, std::int64_t rows) {
  return groups == (rows + kGradientRows - 1) / kGradientRows ? kGradientRows : kFewGradientRows;
}

}  // namespace transposable
