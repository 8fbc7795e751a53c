// What greedy and entropic masks have in common once their entries are in order.
#pragma once

#include <cstdint>

#include "tile_block.hpp"

namespace transposable {

// Rounds a block whose entries are sorted and whose values are loaded: keeps from heavy to light,
// with `repair` completes full tiles, then makes up to `sweeps` sweeps of local search, and writes
// the mask. `lanes` is memory for m * m * kLanes integers.
void round_and_search(const TileBlock& block, const Scores& scores, int n, bool repair, int sweeps,
                      std::int32_t* lanes, std::uint8_t* mask);

}  // namespace transposable
