#include "greedy.hpp"

#include <algorithm>

#include "../parallel.hpp"
#include "search.hpp"
#include "tile_block.hpp"

namespace transposable {

void greedy(const Scores& scores, int n, int m, bool repair, int sweeps, int threads,
            std::uint8_t* mask) {
  const TileGrid grid(scores, m);
  parallel_chunks(grid.count(), 8 * kLanes, threads, [&] {
    return [&, block = TileBlock(m),
            lanes = AlignedBuffer<std::int32_t>(static_cast<std::size_t>(m * m * kLanes))](
               std::int64_t begin, std::int64_t end) mutable {
      for (std::int64_t first = begin; first < end; first += kLanes) {
        block.place(grid, first, static_cast<int>(std::min<std::int64_t>(kLanes, end - first)));
        block.sort_scores(scores, true);
        if (repair || sweeps) block.load_values(scores);
        round_and_search(block, scores, n, repair, sweeps, lanes.get(), mask);
      }
    };
  });
}

}  // namespace transposable
