// The 2-approximation of Hubara et al. 2021 (Algorithm 1).
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

// Walks the scores of each tile from light to heavy and prunes an entry when its row or its column
// has not yet lost line length - n entries: at most n remain. In a cropped tile negative scores are
// always pruned. With `repair` pruned entries come back, from heavy to light where there is room,
// then by exchanges, until full tiles keep exactly n. mask: as for solve_exact.
void two_approx(const Scores& scores, int n, int m, bool repair, int threads, std::uint8_t* mask);

}  // namespace transposable
