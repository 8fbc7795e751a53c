#include "exact.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "fixed_point.hpp"
#include "flow_tile.hpp"
#include "isa.hpp"
#include "parallel.hpp"

namespace transposable {

namespace {

struct Grid {
  std::int64_t batch, rows, cols, down, across;
  int m;

  Grid(const Scores& s, int m_)
      : batch(s.batch), rows(s.rows), cols(s.cols), down((s.rows + m_ - 1) / m_),
        across((s.cols + m_ - 1) / m_), m(m_) {}
};

// Solves one tile in 64 bits and writes it out.
class WideSolver final : public TileFallback {
 public:
  WideSolver(const Scores& scores, const ExactOptions& options, std::uint8_t* mask, double* u,
             double* v)
      : scores_(scores), grid_(scores, options.m), n_(options.n), mask_(mask), u_(u), v_(v) {}

  // Before the lanes get strips [first, last).
  void expect(std::int64_t first, std::int64_t last) {
    first_ = first;
    if (!scores_.magnitude) solved_.assign(static_cast<std::size_t>((last - first) * grid_.across), false);
  }

  void solve(std::int64_t b, std::int64_t down, std::int64_t across) override {
    if (!solved_.empty()) solved_[at(b * grid_.down + down, across)] = true;
    const int m = grid_.m;
    const std::int64_t row0 = down * m, col0 = across * m;
    const int rows = static_cast<int>(std::min<std::int64_t>(m, grid_.rows - row0));
    const int cols = static_cast<int>(std::min<std::int64_t>(m, grid_.cols - col0));
    const bool full = rows == m && cols == m;
    // The slack column of a cropped tile needs a free place: put the cropped side into the columns.
    const bool swap = !full && cols == m;
    tile_.load(scores_, b, row0, col0, rows, cols, swap);
    if (tile_.has_nan) {
      if (!stats_.nan) stats_.nan = NanPlace{b, row0 + tile_.nan_row, col0 + tile_.nan_col};
      return;
    }
    flow_.solve(tile_.a, swap ? cols : rows, swap ? rows : cols, n_, full);
    ++(full ? stats_.wide : stats_.cropped);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < cols; ++j)
        mask_[(b * grid_.rows + row0 + i) * grid_.cols + col0 + j] =
            (swap ? flow_.kept(j) >> i : flow_.kept(i) >> j) & 1;
    if (!u_) return;
    const std::int64_t to = ((b * grid_.down + down) * grid_.across + across) * m;
    for (int i = 0; i < rows; ++i) u_[to + i] = tile_.to_score(swap ? flow_.v(i) : flow_.u(i));
    for (int j = 0; j < cols; ++j) v_[to + j] = tile_.to_score(swap ? flow_.u(j) : flow_.v(j));
  }

  // The tiles of a strip that a ragged edge crops.
  void solve_cropped(std::int64_t strip) {
    const std::int64_t b = strip / grid_.down, down = strip % grid_.down;
    const bool row_cropped = (down + 1) * grid_.m > grid_.rows;
    const std::int64_t first = row_cropped ? 0 : grid_.cols / grid_.m;
    for (std::int64_t across = first; across < grid_.across; ++across) solve(b, down, across);
  }

  // Full tiles of a strip that the lanes solved too coarsely. Their integers are precise relative to
  // the largest score, and so to the sum of magnitudes; but signed scores may keep far less than
  // that, as when the largest one is negative.
  void solve_uneven(std::int64_t strip) {
    if (scores_.magnitude) return;
    const std::int64_t b = strip / grid_.down, down = strip % grid_.down;
    if ((down + 1) * grid_.m > grid_.rows) return;
    for (std::int64_t across = 0; across < grid_.cols / grid_.m; ++across)
      if (!solved_[at(strip, across)] && uneven(b, down, across)) solve(b, down, across);
  }

  const ExactStats& stats() const { return stats_; }

 private:
  std::size_t at(std::int64_t strip, std::int64_t across) const {
    return static_cast<std::size_t>((strip - first_) * grid_.across + across);
  }

  // Whether the rounding of the lanes could cost more than half the tolerance of 1e-6. They round a
  // score by at most 2^-26 of the largest, and doubles to float by another 2^-25.
  bool uneven(std::int64_t b, std::int64_t down, std::int64_t across) const {
    const int m = grid_.m;
    double largest = 0, kept = 0;
    bool negative = false;
    for (int i = 0; i < m; ++i) {
      const std::int64_t row = down * m + i, col = across * m;
      const std::uint8_t* const mask = mask_ + (b * grid_.rows + row) * grid_.cols + col;
      for (int j = 0; j < m; ++j) {
        const double x = scores_.raw(b, row, col + j);
        negative |= x < 0;
        largest = std::max(largest, std::fabs(x));
        kept += mask[j] ? std::fabs(x) : 0;
      }
    }
    const double rounding = scores_.dtype == DType::f64 ? 0x3p-26 : 0x1p-26;
    return negative && m * std::max(2 * n_, m) * rounding * largest > 0.5e-6 * kept;
  }

  std::vector<bool> solved_;  // signed scores only: tiles of strips first_ .. that are done
  std::int64_t first_ = 0;
  const Scores scores_;
  const Grid grid_;
  const int n_;
  std::uint8_t* const mask_;
  double *const u_, *const v_;
  ExactStats stats_;
  FixedTile tile_;
  FlowTile flow_;
};

// One thread: the lanes for the full tiles, 64 bits for the rest.
class Worker {
 public:
  Worker(const LaneJob& job, const ExactOptions& options)
      : wide_(std::make_unique<WideSolver>(job.scores, options, job.mask, job.u, job.v)),
        lanes_(active_engine().make(job, *wide_)) {}

  void operator()(std::int64_t first, std::int64_t last) {
    wide_->expect(first, last);
    lanes_->solve(first, last);
    for (std::int64_t strip = first; strip < last; ++strip) {
      wide_->solve_uneven(strip);
      wide_->solve_cropped(strip);
    }
  }

  void add_to(ExactStats& total) const {
    const ExactStats& wide = wide_->stats();
    const LaneStats& lanes = lanes_->stats();
    total.tiles += lanes.tiles + wide.cropped;
    total.cropped += wide.cropped;
    total.wave += lanes.wave;
    total.compacted += lanes.compacted;
    total.ties += lanes.ties;
    total.paths += lanes.paths;
    total.wide += wide.wide;
    if (wide.nan && !total.nan) total.nan = wide.nan;
  }

 private:
  std::unique_ptr<WideSolver> wide_;
  std::unique_ptr<LaneSolver> lanes_;
};

// A large new mask costs more in page faults than in work: ask for large pages, and have them filled
// before several threads fault on the same ones.
void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::int64_t bytes,
                        [[maybe_unused]] bool fill) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t large = std::uintptr_t{2} << 20;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + large - 1) / large * large;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(bytes)) / large * large;
  if (begin >= end) return;
  void* const from = reinterpret_cast<void*>(begin);
  madvise(from, end - begin, MADV_HUGEPAGE);  // wishes: a kernel that cannot is no error
#if defined(MADV_POPULATE_WRITE)
  if (fill) madvise(from, end - begin, MADV_POPULATE_WRITE);
#endif
#endif
}

}  // namespace

ExactStats solve_exact(const Scores& scores, const ExactOptions& options, std::uint8_t* mask,
                       double* u, double* v) {
  const Grid grid(scores, options.m);
  const std::int64_t strips = grid.batch * grid.down;
  const std::int64_t weights = scores.batch * scores.rows * scores.cols;
  ExactStats total;
  if (weights == 0) return total;
  // A mask that fits the caches is best left there for its first reader.
  const bool stream = weights > (std::int64_t{8} << 20);
  prefer_large_pages(mask, weights, options.threads > 1);
  const LaneJob job{scores, options.n, options.m, mask, u, v, stream};
  // Long enough to fill the lanes, short enough to balance; of a large matrix so long that threads
  // seldom share a large page of a new mask. Not a function of the threads: masks must not be either.
  const std::int64_t share =
      std::clamp<std::int64_t>(weights / 32, std::int64_t{1} << 18, std::int64_t{1} << 22);
  const std::int64_t chunk = std::max<std::int64_t>(1, share / (options.m * scores.cols));
  parallel_chunks(
      strips, chunk, options.threads, [&] { return Worker(job, options); },
      [&](const Worker& worker) { worker.add_to(total); });
  return total;
}

}  // namespace transposable
