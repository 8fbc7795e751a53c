// Entropic masks: Dykstra's projections, then rounding and local search.
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

struct EntropicOptions {
  int iterations;
  float tau;   // inverse temperature, relative to the typical magnitude of a tile
  int sweeps;  // of local search after rounding
};

// Per tile: maximise sum S a - (1/tau) sum S (log S - 1) over 0 <= S <= 1 with line sums n (at most
// n in a cropped tile), round the entries by their reduced score, repair, search. mask: as for
// solve_exact.
void entropic(const Scores& scores, int n, int m, const EntropicOptions& options, int threads,
              std::uint8_t* mask);

}  // namespace transposable
