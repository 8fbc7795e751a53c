// The engine of one instruction set; included by engine_*.cpp only, with TP_ISA and TP_BYTES set.
#pragma once

#include "strip4.hpp"
#include "wave.hpp"

namespace transposable::TP_ISA {

inline LaneSolver* make_solver(const LaneJob& job, TileFallback& fallback) {
  if (job.m == 4) return new Strip4Solver(job, fallback);
  if (job.m <= 8) return new WaveSolver<8>(job, fallback);
  if (job.m <= 16) return new WaveSolver<16>(job, fallback);
  if (job.m <= 32) return new WaveSolver<32>(job, fallback);
  return new WaveSolver<64>(job, fallback);
}

}  // namespace transposable::TP_ISA
