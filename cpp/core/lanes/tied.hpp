// Scores with many exact ties (zeros, quantised weights), many tiles at once.
//
// Dual rounds stall on ties, and cannot separate what is equal. So ties are broken by noise, the
// rounds are run on the perturbed scores, and the mask found is then checked against the true ones:
// it is optimal when there are potentials with a_ij - v_j of every kept entry at least that of every
// pruned entry of its row. They are looked for by Bellman-Ford from the perturbed ones, which are
// nearly right.
//
// All in 16 bits, though few scores are 16-bit numbers: with h = round(a * 2^s) - c an entry is kept
// as 2 h when a * 2^s is a whole number, and as 2 h + 1, an odd number, when it is not. The true
// 2 (a * 2^s - c) is then known exactly in the first case, and lies between 2 h - 1 and 2 h + 1 in the
// second: kept entries are taken at the lower end, pruned ones at the upper.
#pragma once

#include "dual16.hpp"

namespace transposable::TP_ISA {

inline constexpr int kTiedClip = 8191;  // of h; 2 h - 2 v then fits 16 bits

TP_INLINE I16 subtract_saturated(I16 a, I16 b) {
#if TP_BYTES == 64
  return reinterpret_cast<I16>(_mm512_subs_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif TP_BYTES == 32
  return reinterpret_cast<I16>(_mm256_subs_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<I16>(_mm_subs_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const I16 difference = a - b, limit = (a >> 15) ^ 0x7fff;
  return ((a ^ b) & (a ^ difference)) < 0 ? limit : difference;
#endif
}

template <int P>
struct TiedBlock {
  I16 twice[P * P];  // 2 h, or 2 h + 1 for a score between whole numbers
  I16 kept[P * P];   // -1 or 0
  I16 u[P], v[P];    // doubled
};

// Whether at least one in eight of the first scores is a whole number once scaled: zeros, or a coarse
// grid. Of 24-bit scores in general hardly one in a thousand is.
template <class Score>
TP_INLINE bool many_exact(const Score* line, float scale) {
  int exact = 0;
  for (int k = 0; k < 8 * kLanes32; k += kLanes32) {
    const F32 y = load_floats(line + k) * splat<F32>(scale), rounded = y + splat<F32>(12582912.0f);
    exact += __builtin_popcount(lane_bits(rounded - splat<F32>(12582912.0f) == y));
  }
  return exact >= kLanes32;
}

// Fills tied.twice like read_scores, for m == P.
template <int P>
__attribute__((noinline)) void read_tied(TiedBlock<P>& tied, const float* const* lines, float scale, int centre,
                                         SignRule sign) {
  const float offset = static_cast<float>(12582912 - centre);
  const F32 magic = splat<F32>(offset), factor = splat<F32>(scale);
  // A quarter beyond the whole number: clipped scores count as lying between.
  const F32 top = splat<F32>(static_cast<float>(centre + kTiedClip) + 0.25f);
  const F32 bottom = splat<F32>(static_cast<float>(centre - kTiedClip) - 0.25f);
  for (int i = 0; i < P; ++i) {
    I16 line[P];
#pragma GCC unroll 64
    for (int k = 0; k < P; ++k) {
      F32 rounded[2], between[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const F32 y = min(max(sign.apply(load<F32>(lines[i] + (2 * k + half) * kLanes32)) * factor, bottom), top);
        rounded[half] = y + magic;
        between[half] = reinterpret_cast<F32>(rounded[half] - magic != y);
      }
      const I16 h = low_halves(rounded[0], rounded[1]);
      line[k] = h + h - low_halves(between[0], between[1]);
    }
    deinterleave<P>(line, tied.twice + i * P, 1);
  }
}

// block.h becomes h with noise on the exact scores, of at most `amplitude` units.
template <int P>
TP_INLINE void perturb(const TiedBlock<P>& tied, Block16<P>& block, int amplitude) {
  std::uint32_t state = 777;  // with which tiles of 8 x 8 and 16 x 16 equal scores settle
  for (int e = 0; e < P * P; ++e) {
    state = state * 1664525u + 1013904223u;
    const int noise = static_cast<int>((state >> 16) * static_cast<std::uint32_t>(amplitude + 1) >> 16);
    const I16 exact = (tied.twice[e] & 1) - 1;  // -1 or 0
    block.h[e] = (tied.twice[e] >> 1) - (exact & splat<I16>(noise));
  }
}

// Which of the lanes `found`, in which block.kept is optimal for the perturbed scores, are proved
// optimal for the true ones; their potentials are left in tied.
template <int P>
__attribute__((noinline)) std::uint32_t prove_tied(TiedBlock<P>& tied, const Block16<P>& block, std::uint32_t found) {
  I16 bad{};
#pragma GCC unroll 64
  for (int j = 0; j < P; ++j) tied.v[j] = block.v[j] + block.v[j];
  for (int i = 0; i < P; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
      const I16 kept = block.h[i * P + j] - block.v[j] > block.u[i];
      tied.kept[i * P + j] = kept;
      // A clipped score may lie anywhere beyond: right for a kept one above or a pruned one below.
      const I16 clipped = kept ? tied.twice[i * P + j] <= splat<I16>(-2 * kTiedClip + 1)
                               : tied.twice[i * P + j] >= splat<I16>(2 * kTiedClip);
      bad |= clipped;
    }
  found &= ~lane_bits(bad);
  for (int round = 0; round < 14 && found; ++round) {
    I16 next[P];
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) next[j] = tied.v[j];
    for (int i = 0; i < P; ++i) {
      I16 greatest = splat<I16>(-32768);
#pragma GCC unroll 64
      for (int j = 0; j < P; ++j) {
        const I16 x = subtract_saturated(tied.twice[i * P + j], tied.v[j]);
        greatest = max(greatest, tied.kept[i * P + j] ? splat<I16>(-32768) : x);
      }
      tied.u[i] = greatest;
#pragma GCC unroll 64
      for (int j = 0; j < P; ++j) {
        const I16 twice = tied.twice[i * P + j];
        const I16 least = twice - ((twice & 1) + (twice & 1));
        const I16 most = subtract_saturated(least, greatest);  // that v_j may be
        next[j] = min(next[j], tied.kept[i * P + j] ? most : splat<I16>(32767));
      }
    }
    I16 changed{};
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) changed |= next[j] != tied.v[j];
    const std::uint32_t proved = found & ~lane_bits(changed);
    if (proved == found || round == 13) return proved;
    // Lanes without a change stay as they are.
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) tied.v[j] = max(next[j], splat<I16>(-2 * kBound));
  }
  return 0;
}

}  // namespace transposable::TP_ISA
