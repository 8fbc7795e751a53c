// What the type of a run means: which rows keep its columns.
#pragma once

#include <cstdint>

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

// Calls each(type, columns, count) for the columns of one type of every run of a block, in the order of
// their values.
template <class Each>
void for_each_type(int row_block, const std::uint16_t* index, const Each& each) {
  while (index[0]) {
    const RunTypes types = types_of_run(row_block, index[0]);
    const int count = index[1];
    index += 2;
    for (int i = 0; i < types.columns; ++i, index += count) each(types.rows[i], index, count);
  }
}

}  // namespace transposable
