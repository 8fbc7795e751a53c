// How a run is read: which rows keep its columns, and where these stand.
#pragma once

#include <cstdint>

#include "stream.hpp"

namespace transposable {

// Rows of each column that is taken together with the others of the run; bit r is row r.
struct RunTypes {
  int columns;
  unsigned rows[4];
};

// Blocks of 4 rows take columns in pairs, of types t = 1 .. 7 and 15 - t, or in fours of one row each:
// types 15 + t and 23.
inline constexpr unsigned kPairs = 15, kFours = 23;

inline RunTypes types_of_run(int row_block, unsigned type) {
  if (row_block != 4 || type <= kPairs) return {1, {type}};
  if (type == kFours) return {4, {1, 2, 4, 8}};
  return {2, {type - kPairs, 15 - (type - kPairs)}};
}

// In blocks of 4 rows and at most 256 columns, columns are bytes, two to an entry of the index; those of
// a type begin with an entry of their own.
inline bool has_byte_columns(const StreamShape& shape) {
  return shape.row_block == 4 && shape.col_block <= 256;
}
inline std::int64_t entries_of(std::int64_t columns, bool bytes) {
  return bytes ? (columns + 1) / 2 : columns;
}

// Calls each(type, columns, count) for the columns of one type of every run of a block, in the order of
// their values; columns are bytes or 16-bit numbers.
template <class Each>
void for_each_type(const StreamShape& shape, const std::uint16_t* index, const Each& each) {
  const bool bytes = has_byte_columns(shape);
  while (index[0]) {
    const RunTypes types = types_of_run(shape.row_block, index[0]);
    const int count = index[1];
    index += 2;
    for (int i = 0; i < types.columns; ++i, index += entries_of(count, bytes))
      if (bytes)
        each(types.rows[i], reinterpret_cast<const std::uint8_t*>(index), count);
      else
        each(types.rows[i], index, count);
  }
}

}  // namespace transposable
