// One tile of any size up to 64 x 64, exactly, in 64-bit integers: successive shortest paths.
//
//   maximise  sum S_ij a_ij,   S in {0,1}
//   full tile:     every row and column sum equals n
//   cropped tile:  every row and column sum is at most n
//
// A dual solution is kept at all times: with x_ij = a_ij - v_j every row holds its n best x. Columns
// that hold too much hand units over along shortest paths (Dijkstra on reduced costs, which are
// never negative); each path moves one unit and keeps the row property. When no column is over-full
// the mask is optimal, and (u, v) prove it.
//
// A cropped tile gets one more column, "slack": a unit there means that a row keeps one less. It
// takes any number of units, its potential is 0, and so v >= 0 with v_j = 0 on columns that are
// not full, and u >= 0: the conditions of the problem with "at most".
#pragma once

#include <cstdint>

namespace transposable {

class FlowTile {
 public:
  static constexpr int kMax = 64;
  // Scores must lie within +-2^50: sums along a shortest path then stay far from overflow, since a
  // path is never longer than the direct move, which always exists (see flow_tile.cpp).
  static constexpr std::int64_t kLimit = std::int64_t{1} << 50;

  // Row-major scores a[i * kMax + j], 1 <= rows, cols <= 64. `full` asks for exactly n, and then
  // rows == cols and n < rows. warm_v, if given, are `cols` starting potentials within +-2 kLimit;
  // they must be absent for a cropped tile.
  void solve(const std::int64_t* a, int rows, int cols, int n, bool full,
             const std::int64_t* warm_v = nullptr);

  std::uint64_t kept(int row) const { return kept_[row]; }  // bit j: entry (row, j) is kept
  std::int64_t u(int row) const { return u_[row]; }
  std::int64_t v(int col) const { return v_[col]; }
  int augmentations() const { return augmentations_; }

 private:
  void choose_rows();
  void push_excess();
  void finish_u();
  std::int64_t x(int row, int col) const { return a_[row * kMax + col] - v_[col]; }

  const std::int64_t* a_ = nullptr;
  int rows_ = 0, cols_ = 0, n_ = 0, augmentations_ = 0;
  bool full_ = true;
  std::uint64_t kept_[kMax];
  int slack_[kMax];  // units of a row in the slack column
  int held_[kMax];   // units in a column
  std::int64_t u_[kMax], v_[kMax];
};

}  // namespace transposable
