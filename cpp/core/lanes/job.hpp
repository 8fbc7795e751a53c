// What the solvers of one instruction set are given, and what they give back.
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

struct ExactStats;

// Solves and writes out one tile in 64 bits, whatever its scores: for NaN, infinities, tiny or very
// uneven scores, and tiles at a ragged edge.
class TileFallback {
 public:
  virtual ~TileFallback() = default;
  virtual void solve(std::int64_t b, std::int64_t down, std::int64_t across) = 0;
};

// Counts of what happened to the full tiles.
struct LaneStats {
  std::int64_t tiles = 0;
  std::int64_t wave = 0;       // proved by the first 16-bit rounds
  std::int64_t compacted = 0;  // proved by further 16-bit rounds
  std::int64_t ties = 0;       // proved by the 32-bit choice
  std::int64_t paths = 0;      // needed shortest paths
};

struct LaneJob {
  Scores scores;
  int n, m;
  std::uint8_t* mask;  // batch x rows x cols bytes, contiguous
  double *u, *v;       // null, or batch x down x across x m
  bool stream;         // write the mask past the caches
};

// One thread's solver for the full tiles; tile rows are numbered through all matrices.
class LaneSolver {
 public:
  virtual ~LaneSolver() = default;
  virtual void solve(std::int64_t first_strip, std::int64_t last_strip) = 0;
  virtual const LaneStats& stats() const = 0;
};

// One instruction set.
struct LaneEngine {
  const char* name;
  LaneSolver* (*make)(const LaneJob& job, TileFallback& fallback);  // the caller deletes it
};

}  // namespace transposable
