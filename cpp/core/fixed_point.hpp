// A tile of scores as 64-bit fixed-point integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flow_tile.hpp"
#include "scores.hpp"

namespace transposable {

// 2^14 > 2 * 64 * 63: an infinite score outweighs every sum of finite ones of its tile.
inline constexpr int kInfinityBits = 14;

struct FixedTile {
  std::int64_t a[FlowTile::kMax * FlowTile::kMax];
  int exponent = 0;  // score = a * 2^exponent
  bool has_nan = false;
  int nan_row = 0, nan_col = 0;  // of the first NaN, within the tile

  double to_score(std::int64_t x) const { return std::ldexp(static_cast<double>(x), exponent); }

  // Reads rows x cols scores at (b, row0, col0); transposed: a[i][j] is the score at (j, i).
  // The power-of-two scale puts the largest finite magnitude just under 2^50 (2^36 when there are
  // infinities, which become +-2^14 times that magnitude).
  void load(const Scores& scores, std::int64_t b, std::int64_t row0, std::int64_t col0, int rows,
            int cols, bool transposed) {
    double largest = 0;
    bool infinite = false;
    has_nan = false;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) {
        const double x = std::fabs(scores.at(b, row0 + i, col0 + j));
        if (std::isnan(x)) {
          if (!has_nan) nan_row = i, nan_col = j;
          has_nan = true;
        } else if (std::isinf(x)) {
          infinite = true;
        } else {
          largest = std::max(largest, x);
        }
      }
    if (has_nan) return;
    if (largest == 0) largest = 1;
    int top;
    std::frexp(largest, &top);  // largest < 2^top
    exponent = top - (infinite ? 50 - kInfinityBits : 50);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j) {
        const double x = scores.at(b, row0 + i, col0 + j);
        const std::int64_t q =
            std::isinf(x)  // one shift by the sum: 2^14 times a large double is none any more
                ? std::llrint(std::ldexp(std::copysign(largest, x), kInfinityBits - exponent))
                : std::llrint(std::ldexp(x, -exponent));
        a[transposed ? j * FlowTile::kMax + i : i * FlowTile::kMax + j] = q;
      }
  }
};

}  // namespace transposable
