#include "entropic.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../parallel.hpp"
#include "search.hpp"
#include "tile_block.hpp"

namespace transposable {

namespace {

class EntropicBlock {
 public:
  EntropicBlock(int m, int n, const EntropicOptions& options)
      : m_(m),
        n_(n),
        options_(options),
        block_(m),
        scaled_(size()),
        work_(size()),
        lanes_(size()) {}

  void solve(const Scores& scores, const TileGrid& grid, std::int64_t first, int count,
             std::uint8_t* mask) {
    block_.place(grid, first, count);
    block_.load_values(scores);
    for (int lane = 0; lane < kLanes; ++lane) start(lane);
    lane_kernels().dykstra(scaled_.get(), rows_, cols_, at_most_, work_.get(), m_, n_,
                           options_.iterations);
    // Many entries end as exactly 1; a + rows + cols, before the cut at 1, still tells them apart.
    for (int i = 0; i < m_; ++i)
      for (int j = 0; j < m_; ++j)
        for (int lane = 0; lane < kLanes; ++lane) {
          const int at = (i * m_ + j) * kLanes + lane;
          work_.get()[at] = scaled_.get()[at] + rows_[i * kLanes + lane] + cols_[j * kLanes + lane];
        }
    for (int lane = 0; lane < block_.count(); ++lane)
      if (at_most_[lane]) keep_signs(lane);
    block_.sort_values(work_.get(), true);
    round_and_search(block_, scores, n_, true, options_.sweeps, lanes_.get(), mask);
  }

 private:
  std::size_t size() const { return static_cast<std::size_t>(m_ * m_ * kLanes); }

  // The mean magnitude without outliers: of the entries up to four times the mean of all.
  float typical(int lane) const {
    const TilePlace& p = block_.place(lane);
    float limit = std::numeric_limits<float>::infinity(), mean = 1;
    for (int pass = 0; pass < 2; ++pass) {
      float sum = 0;
      int count = 0;
      for (int i = 0; i < p.rows; ++i)
        for (int j = 0; j < p.cols; ++j) {
          const float x = std::fabs(block_.value(lane, i, j));
          sum += x <= limit ? x : 0;
          count += x <= limit;
        }
      mean = sum / static_cast<float>(count);
      limit = 4 * mean;
    }
    return std::max(mean, 1e-30f);
  }

  // Fills the lane's scaled scores and its first potentials: every line's largest entry becomes 1.
  void start(int lane) {
    const bool used = lane < block_.count();
    const TilePlace& p = block_.place(lane);
    at_most_[lane] = used && !p.full ? -1 : 0;
    const float factor = used ? options_.tau / typical(lane) : 0;
    constexpr float kLow = -1e6f, kHigh = 1e6f;  // keeps sums with the potentials finite
    for (int i = 0; i < m_; ++i)
      for (int j = 0; j < m_; ++j) {
        const bool inside = !used || (i < p.rows && j < p.cols);
        const float x = inside && used ? block_.value(lane, i, j) * factor : 0;
        scaled_.get()[(i * m_ + j) * kLanes + lane] = inside ? std::clamp(x, kLow, kHigh) : kLow;
      }
    for (int i = 0; i < m_; ++i) rows_[i * kLanes + lane] = 0;
    for (int j = 0; j < m_; ++j) cols_[j * kLanes + lane] = 0;
    if (at_most_[lane]) return;  // potentials <= 0 that only rise when a sum is too small
    auto a = [&](int i, int j) { return scaled_.get()[(i * m_ + j) * kLanes + lane]; };
    for (int i = 0; i < m_; ++i) {
      float largest = a(i, 0);
      for (int j = 1; j < m_; ++j) largest = std::max(largest, a(i, j));
      rows_[i * kLanes + lane] = -largest;
    }
    for (int j = 0; j < m_; ++j) {
      float largest = a(0, j) + rows_[lane];
      for (int i = 1; i < m_; ++i) largest = std::max(largest, a(i, j) + rows_[i * kLanes + lane]);
      cols_[j * kLanes + lane] = -largest;
    }
  }

  // Rounding a cropped tile refuses negative values, and it is the score whose sign counts: shifts
  // the values of all other entries to 0 and above, in the same order.
  void keep_signs(int lane) {
    const TilePlace& p = block_.place(lane);
    float least = std::numeric_limits<float>::infinity();
    for (int pass = 0; pass < 2; ++pass)
      for (int i = 0; i < p.rows; ++i)
        for (int j = 0; j < p.cols; ++j) {
          float& value = work_.get()[(i * m_ + j) * kLanes + lane];
          if (pass == 0) {
            if (block_.value(lane, i, j) >= 0) least = std::min(least, value);
          } else {
            value = block_.value(lane, i, j) >= 0 ? value - least : -1.0f;
          }
        }
  }

  int m_, n_;
  EntropicOptions options_;
  TileBlock block_;
  AlignedBuffer<float> scaled_, work_;
  AlignedBuffer<std::int32_t> lanes_;
  float rows_[64 * kLanes], cols_[64 * kLanes];
  std::int32_t at_most_[kLanes];
};

}  // namespace

void entropic(const Scores& scores, int n, int m, const EntropicOptions& options, int threads,
              std::uint8_t* mask) {
  const TileGrid grid(scores, m);
  parallel_chunks(grid.count(), 8 * kLanes, threads, [&] {
    return [&, block = EntropicBlock(m, n, options)](std::int64_t begin, std::int64_t end) mutable {
      for (std::int64_t first = begin; first < end; first += kLanes)
        block.solve(scores, grid, first,
                    static_cast<int>(std::min<std::int64_t>(kLanes, end - first)), mask);
    };
  });
}

}  // namespace transposable
