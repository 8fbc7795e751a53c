// Greedy masks: heavy scores first, then repair and local search.
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

// Keeps the scores of each tile from heavy to light where row and column hold less than n. With
// `repair` full tiles are brought to exactly n; then up to `sweeps` sweeps of exchanges between
// pairs of rows. mask: as for solve_exact.
void greedy(const Scores& scores, int n, int m, bool repair, int sweeps, int threads,
            std::uint8_t* mask);

}  // namespace transposable
