// Objective and dual bound of given masks, in double precision.
#include <algorithm>
#include <cmath>
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
          bool infinite = false;
          for (int i = 0; i < rows; ++i)
            for (int j = 0; j < cols; ++j) {
              a[i][j] = scores.at(b, row0 + i, col0 + j);
              if (std::isinf(a[i][j]))
                infinite = true;
              else
                largest = std::max(largest, std::fabs(a[i][j]));
            }
          if (infinite) {
            const double stand_in = std::ldexp(largest > 0 ? largest : 1.0, kInfinityBits);
            for (int i = 0; i < rows; ++i)
              for (int j = 0; j < cols; ++j)
                if (std::isinf(a[i][j])) a[i][j] = std::copysign(stand_in, a[i][j]);
          }
          const double* tu = u + (strip * across + t) * m;
          const double* tv = v + (strip * across + t) * m;
          // Potentials of a cropped tile must be non-negative; raising them keeps the bound valid.
          auto potential = [full](double x) { return full ? x : std::max(x, 0.0); };
          double dual = 0, primal = 0, scale = 0;
          for (int j = 0; j < cols; ++j) dual += n * potential(tv[j]);
          for (int i = 0; i < rows; ++i) {
            dual += n * potential(tu[i]);
            const std::uint8_t* kept = mask + (b * scores.rows + row0 + i) * scores.cols + col0;
            for (int j = 0; j < cols; ++j) {
              dual += std::max(0.0, a[i][j] - potential(tu[i]) - potential(tv[j]));
              primal += kept[j] ? a[i][j] : 0;
              scale += kept[j] ? std::fabs(a[i][j]) : 0;
            }
          }
          part.value += dual;
          if (dual > primal)
            part.worst_gap = std::max(part.worst_gap, (dual - primal) / std::max(scale, 1e-300));
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
