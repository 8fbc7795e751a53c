#include "search.hpp"

#include <algorithm>

#include "kept_tile.hpp"

namespace transposable {

void round_and_search(const TileBlock& block, const Scores& scores, int n, bool repair, int sweeps,
                      std::int32_t* lanes, std::uint8_t* mask) {
  const int m = block.m();
  KeptTile kept;
  if (sweeps) std::fill_n(lanes, m * m * kLanes, 0);
  for (int lane = 0; lane < block.count(); ++lane) {
    const TilePlace& place = block.place(lane);
    kept.clear(m);
    fill_heavy(block, lane, n, kept);
    if (repair && place.full) complete(block, lane, n, kept);
    if (sweeps)
      kept.to_lane(lanes, lane, m);
    else
      kept.write(place, scores, mask);
  }
  if (!sweeps) return;
  for (int sweep = 0; sweep < sweeps; ++sweep)
    if (!lane_kernels().exchange(block.values(), lanes, m)) break;
  for (int lane = 0; lane < block.count(); ++lane) {
    kept.from_lane(lanes, lane, m);
    if (!block.place(lane).full) polish_cropped(block, lane, n, sweeps, kept);
    kept.write(block.place(lane), scores, mask);
  }
}

}  // namespace transposable
