// How many floating-point operations a second the instruction set can do at all. Rules of lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"

namespace transposable::TP_ISA {

// Multiply-adds, two operations each for every lane, that do not wait for one another; returns their
// number. The sums are handed back so that no compiler leaves them out.
inline double multiply_adds(long rounds, float* sums) {
  constexpr int chains = 12;  // more than two units with a latency of five need
  F32 sum[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) sum[i] = splat<F32>(1.0f + static_cast<float>(i));
  const F32 factor = splat<F32>(0.999f), more = splat<F32>(0.001f);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) {
      sum[i] = sum[i] * factor + more;
      asm volatile("" : "+x"(sum[i]));  // else the compiler sums up several rounds at once
    }
  }
  F32 all = sum[0];
#pragma GCC unroll 12
  for (int i = 1; i < chains; ++i) all += sum[i];
  store(sums, all);
  return static_cast<double>(rounds) * chains * kLanes32 * 2;
}

}  // namespace transposable::TP_ISA
