// Blocks of kLanes tiles: their scores with one lane for each tile, and their entries in order.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "../scores.hpp"
#include "lane_kernels.hpp"

namespace transposable {

struct TilePlace {
  std::int64_t batch, row, col;  // of the first entry
  int rows, cols;
  bool full;
};

// The tiles of a batch of matrices, numbered along the rows of tiles.
class TileGrid {
 public:
  TileGrid(const Scores& scores, int m)
      : rows_(scores.rows),
        cols_(scores.cols),
        down_((scores.rows + m - 1) / m),
        across_((scores.cols + m - 1) / m),
        batch_(scores.batch),
        m_(m) {}
  std::int64_t count() const { return batch_ * down_ * across_; }
  TilePlace place(std::int64_t tile) const;

 private:
  std::int64_t rows_, cols_, down_, across_, batch_;
  int m_;
};

class TileBlock {
 public:
  // A key is the double 2^52 + (unsigned score << 12 | place): doubles of one binade are ordered
  // like the integers in their mantissa, and every processor has minimum and maximum of doubles.
  static constexpr int kPlaceBits = 12;  // row << 6 | column

  explicit TileBlock(int m);

  // Points the block at `count` <= kLanes tiles from `first` on.
  void place(const TileGrid& grid, std::int64_t first, int count);

  // Reads the scores as float, each tile times the power of two that puts its largest finite
  // magnitude into [0.5, 1), infinities as +-2^14. Entries outside a cropped tile are 0.
  void load_values(const Scores& scores);
  float value(int lane, int i, int j) const { return values_.get()[(i * m_ + j) * kLanes + lane]; }
  const float* values() const { return values_.get(); }

  // Sorts the entries of every tile by score, ascending, none of them NaN; equal scores by place,
  // the earlier first or, with later_first, last.
  void sort_scores(const Scores& scores, bool later_first);
  // The same for other values, indexed as values().
  void sort_values(const float* values, bool later_first);

  struct Entry {
    int row, col;
    bool negative;
  };
  // The sorted entries of one tile, the lightest at rank 0.
  class Ranking {
   public:
    int count() const { return count_; }
    Entry operator[](int rank) const {
      const auto bits = std::bit_cast<std::uint64_t>(first_[rank * kSortLanes]);
      const auto place = static_cast<std::uint32_t>(bits) ^ flip_;
      return {static_cast<int>(place >> 6 & 63), static_cast<int>(place & 63),
              !(bits >> (kPlaceBits + 31) & 1)};
    }

   private:
    friend class TileBlock;
    Ranking(const double* first, int count, std::uint32_t flip)
        : first_(first), count_(count), flip_(flip) {}
    const double* first_;
    int count_;
    std::uint32_t flip_;
  };
  Ranking ranking(int lane) const;

  int m() const { return m_; }
  int count() const { return count_; }
  const TilePlace& place(int lane) const { return places_[lane]; }

 private:
  double* key(int lane, int at) {
    return keys_.get() + (lane / kSortLanes * m_ * m_ + at) * kSortLanes + lane % kSortLanes;
  }
  void sort();

  int m_, count_ = 0;
  bool later_first_ = false;
  std::array<TilePlace, kLanes> places_{};
  AlignedBuffer<float> values_;
  AlignedBuffer<double> keys_;
};

}  // namespace transposable
