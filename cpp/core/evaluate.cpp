// Objective and dual bound of given masks, in double precision.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "exact.hpp"
#include "fixed_point.hpp"
#include "parallel.hpp"

namespace transposable {

DualBound dual_bound(const Scores& scores, int n, int m, int threads, const std::uint8_t* mask,
                     const double* u, const double* v) {
  const std::int64_t down = (scores.rows + m - 1) / m, across = (scores.cols + m - 1) / m;
  DualBound total{0, 0};
  std::mutex guard;
  parallel_chunks(scores.batch * down, 8, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      DualBound part{0, 0};
      double a[64][64];
      for (std::int64_t strip = begin; strip < end; ++strip) {
        const std::int64_t b = strip / down, row0 = strip % down * m;
        const int rows = static_cast<int>(std::min<std::int64_t>(m, scores.rows - row0));
        for (std::int64_t t = 0; t < across; ++t) {
          const std::int64_t col0 = t * m;
          const int cols = static_cast<int>(std::min<std::int64_t>(m, scores.cols - col0));
          const bool full = rows == m && cols == m;
          double largest = 0;
          for (int i = 0; i < rows; ++i)
            for (int j = 0; j < cols; ++j) {
              a[i][j] = scores.at(b, row0 + i, col0 + j);
              if (!std::isinf(a[i][j])) largest = std::max(largest, std::fabs(a[i][j]));
            }
          if (largest == 0) largest = 1;
          // All in units of 2^exponent, near the largest score: sums neither overflow nor vanish.
          // The power of two is applied in two halves, either of which is a double.
          const int exponent = std::ilogb(largest);
          const double half = std::ldexp(1.0, -exponent / 2);
          const double rest = std::ldexp(1.0, -exponent - (-exponent / 2));
          auto units = [half, rest](double x) { return x * half * rest; };
          const double stand_in = std::ldexp(units(largest), kInfinityBits);
          const double* tu = u + (strip * across + t) * m;
          const double* tv = v + (strip * across + t) * m;
          // Potentials of a cropped tile must be non-negative; raising them keeps the bound valid.
          auto potential = [&](double x) { return full ? units(x) : std::max(units(x), 0.0); };
          // gap = dual - primal without the cancellation of that difference: what complementary
          // slackness is short of, and potentials of lines that keep fewer than n.
          double gap = 0, primal = 0, scale = 0, pv[64];
          int held[64] = {};
          bool infinite = false;
          for (int j = 0; j < cols; ++j) pv[j] = potential(tv[j]);
          for (int i = 0; i < rows; ++i) {
            const double pu = potential(tu[i]);
            const std::uint8_t* kept = mask + (b * scores.rows + row0 + i) * scores.cols + col0;
            int count = 0;
            for (int j = 0; j < cols; ++j) {
              const bool endless = std::isinf(a[i][j]);
              const double x = endless ? std::copysign(stand_in, a[i][j]) : units(a[i][j]);
              const double reduced = x - pu - pv[j];
              infinite |= endless;
              if (kept[j]) {
                if (!(reduced >= 0)) gap -= reduced;
                primal += x;
                if (!endless) scale += std::fabs(x);
                ++held[j];
                ++count;
              } else if (!(reduced <= 0)) {
                gap += reduced;
              }
            }
            gap += pu * (n - count);
          }
          for (int j = 0; j < cols; ++j) gap += pv[j] * (n - held[j]);
          // Infinite scores must not hide a gap among the finite ones; and signed scores may sum to
          // next to nothing, but a gap below 1e-12 of the largest is rounding.
          scale = std::max(scale, infinite ? 1.0 : 0x1p-20);
          part.value += std::ldexp(primal + gap, exponent);
          if (std::isnan(gap))
            part.worst_gap = std::numeric_limits<double>::infinity();
          else if (gap > 0)
            part.worst_gap = std::max(part.worst_gap, gap / scale);
        }
      }
      const std::lock_guard lock(guard);
      total.value += part.value;
      total.worst_gap = std::max(total.worst_gap, part.worst_gap);
    };
  });
  return total;
}

double kept_sum(const Scores& scores, int threads, const std::uint8_t* mask) {
  double total = 0;
  std::mutex guard;
  parallel_chunks(scores.batch * scores.rows, 64, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      double part = 0;
      for (std::int64_t line = begin; line < end; ++line) {
        const std::int64_t b = line / scores.rows, r = line % scores.rows;
        for (std::int64_t c = 0; c < scores.cols; ++c)
          if (mask[line * scores.cols + c]) part += scores.at(b, r, c);
      }
      const std::lock_guard lock(guard);
      total += part;
    };
  });
  return total;
}

}  // namespace transposable
