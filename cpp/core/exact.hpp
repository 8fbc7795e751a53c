// Optimal transposable masks of every tile of a batch of matrices.
#pragma once

#include <cstdint>
#include <optional>

#include "scores.hpp"

namespace transposable {

struct ExactOptions {
  int n, m;
  int threads;
};

struct NanPlace {
  std::int64_t batch, row, col;
};

struct ExactStats {
  std::int64_t tiles = 0;      // full and cropped
  std::int64_t wave = 0;       // proved by the first 16-bit rounds (by enumeration for 4 x 4)
  std::int64_t compacted = 0;  // proved by further 16-bit rounds
  std::int64_t ties = 0;       // proved by the 32-bit choice among ties
  std::int64_t paths = 0;      // needed shortest paths
  std::int64_t wide = 0;       // full tiles solved in 64 bits
  std::int64_t cropped = 0;    // at a ragged edge, in 64 bits
  std::optional<NanPlace> nan;  // set: nothing of the mask may be used
};

// mask: batch x rows x cols bytes, contiguous, 0 or 1. u, v: null or batch x down x across x m
// doubles, contiguous and zeroed, down = ceil(rows / m), across = ceil(cols / m).
ExactStats solve_exact(const Scores& scores, const ExactOptions& options, std::uint8_t* mask,
                       double* u, double* v);

struct DualBound {
  double value;      // sum over tiles of N sum u + N sum v + sum max(0, a - u - v)
  double worst_gap;  // largest (dual - primal) / sum of finite kept |a| of one tile
};

DualBound dual_bound(const Scores& scores, int n, int m, int threads, const std::uint8_t* mask,
                     const double* u, const double* v);

double kept_sum(const Scores& scores, int threads, const std::uint8_t* mask);

}  // namespace transposable
