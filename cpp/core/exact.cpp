#include "exact.hpp"

#include <algorithm>
#include <mutex>

#include "fixed_point.hpp"
#include "flow_tile.hpp"
#include "parallel.hpp"

namespace transposable {

namespace {

struct Grid {
  std::int64_t batch, rows, cols, down, across;
  int m;

  Grid(const Scores& s, int m_)
      : batch(s.batch), rows(s.rows), cols(s.cols), down((s.rows + m_ - 1) / m_),
        across((s.cols + m_ - 1) / m_), m(m_) {}
  std::int64_t tile(std::int64_t b, std::int64_t r, std::int64_t c) const {
    return (b * down + r) * across + c;
  }
};

// Solves one tile in 64 bits and writes it out.
class WideSolver {
 public:
  WideSolver(const Scores& scores, const ExactOptions& options, std::uint8_t* mask, double* u,
             double* v)
      : scores_(scores), grid_(scores, options.m), n_(options.n), mask_(mask), u_(u), v_(v) {}

  void solve(std::int64_t b, std::int64_t down, std::int64_t across, ExactStats& stats) {
    const int m = grid_.m;
    const std::int64_t row0 = down * m, col0 = across * m;
    const int rows = static_cast<int>(std::min<std::int64_t>(m, grid_.rows - row0));
    const int cols = static_cast<int>(std::min<std::int64_t>(m, grid_.cols - col0));
    const bool full = rows == m && cols == m;
    // The slack column of a cropped tile needs a free place: put the cropped side into the columns.
    const bool swap = !full && cols == m;
    tile_.load(scores_, b, row0, col0, rows, cols, swap);
    if (tile_.has_nan) {
      stats.nan = NanPlace{b, row0 + tile_.nan_row, col0 + tile_.nan_col};
      return;
    }
    flow_.solve(tile_.a, swap ? cols : rows, swap ? rows : cols, n_, full);
    ++stats.wide;
    stats.cropped += !full;
    stats.augmentations += flow_.augmentations();
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j)
        mask_[(b * grid_.rows + row0 + i) * grid_.cols + col0 + j] =
            (swap ? flow_.kept(j) >> i : flow_.kept(i) >> j) & 1;
    if (!u_) return;
    const std::int64_t at = grid_.tile(b, down, across) * m;
    for (int i = 0; i < rows; ++i) u_[at + i] = tile_.to_score(swap ? flow_.v(i) : flow_.u(i));
    for (int j = 0; j < cols; ++j) v_[at + j] = tile_.to_score(swap ? flow_.u(j) : flow_.v(j));
  }

 private:
  const Scores& scores_;
  Grid grid_;
  int n_;
  std::uint8_t* mask_;
  double *u_, *v_;
  FixedTile tile_;
  FlowTile flow_;
};

void merge(ExactStats& into, const ExactStats& from) {
  into.tiles += from.tiles;
  into.cropped += from.cropped;
  into.wide += from.wide;
  into.augmentations += from.augmentations;
  if (from.nan && !into.nan) into.nan = from.nan;
}

}  // namespace

ExactStats solve_exact(const Scores& scores, const ExactOptions& options, std::uint8_t* mask,
                       double* u, double* v) {
  const Grid grid(scores, options.m);
  ExactStats total;
  std::mutex guard;
  parallel_chunks(grid.batch * grid.down, 1, options.threads, [&] {
    return [&, solver = WideSolver(scores, options, mask, u, v)](std::int64_t begin,
                                                                 std::int64_t end) mutable {
      ExactStats stats;
      for (std::int64_t strip = begin; strip < end; ++strip)
        for (std::int64_t c = 0; c < grid.across && !stats.nan; ++c, ++stats.tiles)
          solver.solve(strip / grid.down, strip % grid.down, c, stats);
      const std::lock_guard lock(guard);
      merge(total, stats);
    };
  });
  return total;
}

}  // namespace transposable
