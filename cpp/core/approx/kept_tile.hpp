// The kept entries of one tile, and the steps that build and improve them.
#pragma once

#include <cstdint>

#include "tile_block.hpp"

namespace transposable {

struct KeptTile {
  std::uint64_t row[64];       // bit j: entry (row, j) is kept
  int in_row[64], in_col[64];  // their counts

  void clear(int m);
  bool has(int i, int j) const { return row[i] >> j & 1; }
  void keep(int i, int j) {
    row[i] |= std::uint64_t{1} << j;
    ++in_row[i], ++in_col[j];
  }
  void drop(int i, int j) {
    row[i] &= ~(std::uint64_t{1} << j);
    --in_row[i], --in_col[j];
  }
  // Copies to or from a lane of 0 or -1 entries, indexed as the values of a block.
  void to_lane(std::int32_t* kept, int lane, int m) const;
  void from_lane(const std::int32_t* kept, int lane, int m);
  // Writes the tile to the mask, batch x rows x cols bytes, contiguous.
  void write(const TilePlace& place, const Scores& scores, std::uint8_t* mask) const;
};

// Keeps entries from heavy to light wherever row and column hold less than n; in a cropped tile
// only those that are not negative. The block must be sorted.
void fill_heavy(const TileBlock& block, int lane, int n, KeptTile& kept);

// Brings a full tile that fill_heavy has filled to exactly n per row and column, each time by the
// best exchange of one kept entry for two others. Uses the values of the block.
void complete(const TileBlock& block, int lane, int n, KeptTile& kept);

// Improves a cropped tile, where counts may vary: drops negative entries, adds those that fit, and
// moves entries within their row or column, up to `sweeps` times. Uses the values of the block.
void polish_cropped(const TileBlock& block, int lane, int n, int sweeps, KeptTile& kept);

}  // namespace transposable
