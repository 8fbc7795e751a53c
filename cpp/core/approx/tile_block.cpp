#include "tile_block.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "elements.hpp"

namespace transposable {

namespace {

constexpr std::uint64_t kBinade = 0x4330000000000000u;
constexpr std::uint32_t kZero = 0x80000000u;  // the unsigned score of 0
constexpr int kPlaceMask = (1 << TileBlock::kPlaceBits) - 1;

double pack(std::uint32_t score, int i, int j, bool later_first) {
  const auto place = static_cast<std::uint64_t>((i << 6 | j) ^ (later_first ? kPlaceMask : 0));
  return std::bit_cast<double>(kBinade | std::uint64_t{score} << TileBlock::kPlaceBits | place);
}

std::uint32_t unsigned_score(float x) { return static_cast<std::uint32_t>(ordered(x)) ^ kZero; }

// Doubles do not fit a key: their rank among the entries of the tile takes their place.
void pack_doubles(const double* x, const TilePlace& place, int m, bool later_first, double* keys) {
  std::int16_t order[64 * 64];
  int count = 0;
  for (int i = 0; i < place.rows; ++i)
    for (int j = 0; j < place.cols; ++j) order[count++] = static_cast<std::int16_t>(i * m + j);
  std::sort(order, order + count, [x](int a, int b) { return x[a] < x[b]; });
  std::uint32_t rank = 0;
  for (int at = 0; at < count; ++at) {
    const double here = x[order[at]];
    if (at && here != x[order[at - 1]]) ++rank;
    const int i = order[at] / m, j = order[at] % m;
    keys[order[at] * kSortLanes] = pack(here < 0 ? rank : kZero + rank, i, j, later_first);
  }
}

}  // namespace

TilePlace TileGrid::place(std::int64_t tile) const {
  const std::int64_t strip = tile / across_, row = strip % down_ * m_, col = tile % across_ * m_;
  const int rows = static_cast<int>(std::min<std::int64_t>(m_, rows_ - row));
  const int cols = static_cast<int>(std::min<std::int64_t>(m_, cols_ - col));
  return {strip / down_, row, col, rows, cols, rows == m_ && cols == m_};
}

TileBlock::TileBlock(int m)
    : m_(m),
      values_(static_cast<std::size_t>(m * m * kLanes)),
      keys_(static_cast<std::size_t>(m * m * kLanes)) {
  // Lanes without a tile and entries outside a cropped one are read by the kernels.
  std::fill_n(values_.get(), m * m * kLanes, 0.0f);
  std::fill_n(keys_.get(), m * m * kLanes, std::bit_cast<double>(kBinade));
}

void TileBlock::place(const TileGrid& grid, std::int64_t first, int count) {
  count_ = count;
  for (int lane = 0; lane < count; ++lane) places_[lane] = grid.place(first + lane);
}

void TileBlock::load_values(const Scores& scores) {
  with_elements(scores, [&](const auto* data) {
    for (int lane = 0; lane < count_; ++lane) {
      const TilePlace& p = places_[lane];
      const std::int64_t start = scores.offset(p.batch, p.row, p.col);
      auto read = [&](int i, int j) {
        const double x = widen(data[start + i * scores.row_stride + j * scores.col_stride]);
        return scores.magnitude ? std::fabs(x) : x;
      };
      using Value = decltype(widen(*data));
      constexpr auto kFinite = static_cast<double>(std::numeric_limits<Value>::max());
      double largest = 0;
      bool infinite = false;
      for (int i = 0; i < p.rows; ++i)
        for (int j = 0; j < p.cols; ++j) {
          const double x = std::fabs(read(i, j));
          infinite |= x > kFinite;
          largest = x <= kFinite && x > largest ? x : largest;
        }
      int exponent;
      std::frexp(largest, &exponent);
      // Two factors: one alone leaves the range of double for subnormal tiles.
      const double first = std::ldexp(1.0, -exponent / 2);
      const double second = std::ldexp(1.0, -exponent - -exponent / 2);
      float* out = values_.get() + lane;
      if (!p.full)
        for (int at = 0; at < m_ * m_; ++at) out[at * kLanes] = 0;
      for (int i = 0; i < p.rows; ++i)
        for (int j = 0; j < p.cols; ++j)
          out[(i * m_ + j) * kLanes] = static_cast<float>(read(i, j) * first * second);
      if (!infinite) continue;
      for (int i = 0; i < p.rows; ++i)
        for (int j = 0; j < p.cols; ++j)
          if (const double x = read(i, j); std::isinf(x))
            out[(i * m_ + j) * kLanes] = std::copysign(0x1p14f, static_cast<float>(x));
    }
  });
}

void TileBlock::sort_scores(const Scores& scores, bool later_first) {
  later_first_ = later_first;
  with_elements(scores, [&](const auto* data) {
    using Value = decltype(widen(*data));
    for (int lane = 0; lane < count_; ++lane) {
      const TilePlace& p = places_[lane];
      const std::int64_t start = scores.offset(p.batch, p.row, p.col);
      auto read = [&](int i, int j) {
        const Value x = widen(data[start + i * scores.row_stride + j * scores.col_stride]);
        return scores.magnitude ? std::fabs(x) : x;
      };
      double* out = key(lane, 0);
      if (!p.full)
        for (int at = 0; at < m_ * m_; ++at) out[at * kSortLanes] = std::bit_cast<double>(kBinade);
      if constexpr (std::is_same_v<Value, double>) {
        double x[64 * 64];
        for (int i = 0; i < p.rows; ++i)
          for (int j = 0; j < p.cols; ++j) x[i * m_ + j] = read(i, j);
        pack_doubles(x, p, m_, later_first, out);
      } else {
        for (int i = 0; i < p.rows; ++i)
          for (int j = 0; j < p.cols; ++j)
            out[(i * m_ + j) * kSortLanes] = pack(unsigned_score(read(i, j)), i, j, later_first);
      }
    }
  });
  sort();
}

void TileBlock::sort_values(const float* values, bool later_first) {
  later_first_ = later_first;
  for (int lane = 0; lane < count_; ++lane) {
    const TilePlace& p = places_[lane];
    double* out = key(lane, 0);
    for (int i = 0; i < m_; ++i)
      for (int j = 0; j < m_; ++j) {
        const int at = i * m_ + j;
        out[at * kSortLanes] =
            i < p.rows && j < p.cols
                ? pack(unsigned_score(values[at * kLanes + lane]), i, j, later_first)
                : std::bit_cast<double>(kBinade);
      }
  }
  sort();
}

void TileBlock::sort() {
  for (int lane = 0; lane < count_; lane += kSortLanes) lane_kernels().sort(key(lane, 0), m_ * m_);
}

// The keys outside a cropped tile are the least of all and come first.
TileBlock::Ranking TileBlock::ranking(int lane) const {
  const int count = places_[lane].rows * places_[lane].cols;
  const double* keys = keys_.get() + (lane / kSortLanes * m_ * m_) * kSortLanes + lane % kSortLanes;
  return {keys + (m_ * m_ - count) * kSortLanes, count,
          static_cast<std::uint32_t>(later_first_ ? kPlaceMask : 0)};
}

}  // namespace transposable
