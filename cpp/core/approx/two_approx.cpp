#include "two_approx.hpp"

#include <algorithm>

#include "../parallel.hpp"
#include "kept_tile.hpp"
#include "tile_block.hpp"

namespace transposable {

namespace {

void prune_light(const TileBlock& block, int lane, int n, KeptTile& kept) {
  const TilePlace& p = block.place(lane);
  const int row_quota = std::max(p.cols - n, 0), col_quota = std::max(p.rows - n, 0);
  const std::uint64_t all = p.cols == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << p.cols) - 1;
  int row_lacks[64], col_lacks[64];
  std::fill_n(kept.row, p.rows, all);
  std::fill_n(row_lacks, p.rows, row_quota);
  std::fill_n(col_lacks, p.cols, col_quota);
  int open = (row_quota ? p.rows : 0) + (col_quota ? p.cols : 0);  // lines that lack pruned entries
  const TileBlock::Ranking ranking = block.ranking(lane);
  for (int rank = 0; rank < ranking.count(); ++rank) {
    const auto [i, j, negative] = ranking[rank];
    const bool unwanted = negative && !p.full;
    if (!open && !unwanted) break;
    // Without a branch: whether an entry is pruned cannot be predicted.
    const int prune = (row_lacks[i] > 0) | (col_lacks[j] > 0) | unwanted;
    kept.row[i] &= ~(static_cast<std::uint64_t>(prune) << j);
    row_lacks[i] -= prune;
    col_lacks[j] -= prune;
    open -= (prune & (row_lacks[i] == 0)) + (prune & (col_lacks[j] == 0));
  }
  for (int i = 0; i < p.rows; ++i) kept.in_row[i] = std::min(n, p.cols) + row_lacks[i];
  for (int j = 0; j < p.cols; ++j) kept.in_col[j] = std::min(n, p.rows) + col_lacks[j];
}

}  // namespace

void two_approx(const Scores& scores, int n, int m, bool repair, int threads, std::uint8_t* mask) {
  const TileGrid grid(scores, m);
  parallel_chunks(grid.count(), 8 * kLanes, threads, [&] {
    return
        [&, block = TileBlock(m), kept = KeptTile()](std::int64_t begin, std::int64_t end) mutable {
          for (std::int64_t first = begin; first < end; first += kLanes) {
            block.place(grid, first, static_cast<int>(std::min<std::int64_t>(kLanes, end - first)));
            block.sort_scores(scores, false);
            if (repair) block.load_values(scores);
            for (int lane = 0; lane < block.count(); ++lane) {
              prune_light(block, lane, n, kept);
              if (repair) {
                fill_heavy(block, lane, n, kept);
                if (block.place(lane).full) complete(block, lane, n, kept);
              }
              kept.write(block.place(lane), scores, mask);
            }
          }
        };
  });
}

}  // namespace transposable
