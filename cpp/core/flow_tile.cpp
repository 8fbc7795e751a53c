#include "flow_tile.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

namespace transposable {

namespace {
constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max();

std::uint64_t low_bits(int count) {
  return count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}
}  // namespace

void FlowTile::solve(const std::int64_t* a, int rows, int cols, int n, bool full,
                     const std::int64_t* warm_v) {
  a_ = a;
  rows_ = rows;
  cols_ = cols;
  n_ = n;
  full_ = full;
  augmentations_ = 0;
  for (int j = 0; j < cols; ++j) v_[j] = warm_v ? warm_v[j] : 0;
  choose_rows();
  push_excess();
  finish_u();
}

// Every row takes its n best columns. Ties are settled last, rows in order, each in favour of the
// columns that hold the least: all-equal tiles then need no path at all.
void FlowTile::choose_rows() {
  std::uint64_t tied[kMax];
  int missing[kMax];
  std::fill_n(held_, cols_, 0);
  for (int i = 0; i < rows_; ++i) {
    std::int64_t values[kMax];
    for (int j = 0; j < cols_; ++j) values[j] = x(i, j);
    std::int64_t threshold = full_ ? kFar : 0;
    if (n_ <= cols_) {
      std::nth_element(values, values + n_ - 1, values + cols_, std::greater<>());
      threshold = full_ ? values[n_ - 1] : std::max<std::int64_t>(values[n_ - 1], 0);
    }
    kept_[i] = tied[i] = 0;
    for (int j = 0; j < cols_; ++j) {
      const std::int64_t value = x(i, j);
      const std::uint64_t bit = std::uint64_t{1} << j;
      if (value > threshold) {
        kept_[i] |= bit;
        ++held_[j];
      } else if (value == threshold) {
        tied[i] |= bit;
      }
    }
    missing[i] = n_ - std::popcount(kept_[i]);
  }
  for (int i = 0; i < rows_; ++i) {
    slack_[i] = 0;
    while (missing[i] > 0) {
      int best = -1;
      for (std::uint64_t left = tied[i]; left; left &= left - 1) {
        const int j = std::countr_zero(left);
        if (best < 0 || held_[j] < held_[best]) best = j;
      }
      // At a threshold of 0 the slack column is tied too, and it is never full.
      if (best < 0 || (!full_ && held_[best] >= n_ && x(i, best) == 0)) {
        slack_[i] = missing[i];
        break;
      }
      kept_[i] |= std::uint64_t{1} << best;
      tied[i] &= ~(std::uint64_t{1} << best);
      ++held_[best];
      --missing[i];
    }
  }
}

// Moves units from over-full columns to columns with room. A direct move always exists: a column
// that holds more than another is held by a row that does not hold the other. So a shortest path
// costs at most one difference of scores plus the potentials, whatever the number of its arcs.
void FlowTile::push_excess() {
  const int slack = full_ ? -1 : cols_;
  std::int64_t distance[kMax + 1];
  int from_col[kMax + 1], by_row[kMax + 1];
  for (;;) {
    bool any = false;
    for (int j = 0; j < cols_; ++j) {
      distance[j] = held_[j] > n_ ? 0 : kFar;
      any |= held_[j] > n_;
      from_col[j] = -1;
    }
    if (!any) return;
    if (slack >= 0) distance[slack] = kFar;

    std::uint64_t open_low = low_bits(cols_);  // columns not yet settled; slack is a target
    int target = -1;
    for (;;) {
      int best = -1;
      for (std::uint64_t left = open_low; left; left &= left - 1) {
        const int j = std::countr_zero(left);
        if (best < 0 || distance[j] < distance[best]) best = j;
      }
      if (slack >= 0 && (best < 0 || distance[slack] < distance[best])) {
        target = slack;
        break;
      }
      if (held_[best] < n_) {
        target = best;
        break;
      }
      open_low &= ~(std::uint64_t{1} << best);
      for (int i = 0; i < rows_; ++i) {
        if (!(kept_[i] >> best & 1)) continue;
        const std::int64_t base = distance[best] + x(i, best);
        for (std::uint64_t left = open_low & ~kept_[i]; left; left &= left - 1) {
          const int j = std::countr_zero(left);
          const std::int64_t length = base - x(i, j);
          if (length < distance[j]) {
            distance[j] = length;
            from_col[j] = best;
            by_row[j] = i;
          }
        }
        if (slack >= 0 && base < distance[slack]) {
          distance[slack] = base;
          from_col[slack] = best;
          by_row[slack] = i;
        }
      }
    }
    const std::int64_t reached = distance[target];
    for (int j = 0; j < cols_; ++j)
      if (distance[j] < reached) v_[j] += reached - distance[j];
    int to = target;
    while (from_col[to] >= 0) {
      const int from = from_col[to], row = by_row[to];
      kept_[row] &= ~(std::uint64_t{1} << from);
      if (to == slack)
        ++slack_[row];
      else
        kept_[row] |= std::uint64_t{1} << to;
      to = from;
    }
    --held_[to];
    if (target != slack) ++held_[target];
    ++augmentations_;
  }
}

// Any u between a row's least kept and its greatest pruned x proves the row; take the latter, raised
// to 0 in a cropped tile.
void FlowTile::finish_u() {
  for (int i = 0; i < rows_; ++i) {
    std::int64_t greatest = full_ ? std::numeric_limits<std::int64_t>::min() : 0;
    for (int j = 0; j < cols_; ++j)
      if (!(kept_[i] >> j & 1)) greatest = std::max(greatest, x(i, j));
    u_[i] = greatest;
  }
}

}  // namespace transposable
