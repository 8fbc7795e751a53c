// Blocks of kLanes tiles: their scores with one lane for each tile, and their entries in order.
#pragma once

#include <array>
#include <cstdint>

#include "../scores.hpp"
#include "lanes.hpp"

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
      : rows_(scores.rows), cols_(scores.cols), down_((scores.rows + m - 1) / m),
        across_((scores.cols + m - 1) / m), batch_(scores.batch), m_(m) {}
  std::int64_t count() const { return batch_ * down_ * across_; }
  TilePlace place(std::int64_t tile) const;

 private:
  std::int64_t rows_, cols_, down_, across_, batch_;
  int m_;
};

class TileBlock {
 public:
  explicit TileBlock(int m);

  // Points the block at `count` <= kLanes tiles from `first` on.
  void place(const TileGrid& grid, std::int64_t first, int count);

  // Reads the scores as float, each tile times the power of two that puts its largest finite
  // magnitude into [0.5, 1), infinities as +-2^14. Entries outside a cropped tile are 0.
  void load_values(const Scores& scores);
  float value(int lane, int i, int j) const { return values_.get()[(i * m_ + j) * kLanes + lane]; }
  const float* values() const { return values_.get(); }

  // Sorts the entries of every tile by score, ascending; equal scores by place, the earlier first or,
  // with later_first, last.
  void sort_scores(const Scores& scores, bool later_first);
  // The same for other values, indexed as values().
  void sort_values(const float* values, bool later_first);

  struct Entry {
    int row, col;
    bool negative;
  };
  int entries(int lane) const { return places_[lane].rows * places_[lane].cols; }
  // The entry at this rank, 0 <= rank < entries(lane).
  Entry entry(int lane, int rank) const;

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
