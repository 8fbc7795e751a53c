// Dual iterations on many tiles at once, one tile in each 16-bit lane, and the proof of optimality.
//
// A tile's scores become h = round(a * 2^s), clipped to +-kClip. With potentials u, v one round sets
//   u_i = midpoint of the N-th and (N+1)-th largest of (h_ij - v_j) in row i, then
//   v_j = midpoint of the N-th and (N+1)-th largest of (h_ij - u_i) in column j.
// When the entries with h_ij - v_j > u_i are exactly N in every row and column, that mask is
// optimal, and not only for the rounded scores: rounding is monotone, so kept entries have
// a * 2^s >= u_i + v_j + 1/2 and pruned ones a * 2^s <= u_i + v_j + 1/2. This is complementary
// slackness in real numbers with the potentials (u_i + 1/2) / 2^s and v_j / 2^s.
//
// No overflow, and clipping does not spoil the proof: |u|, |v| <= kBound and |h| <= kClip give
// |h - v| <= 24574 and |h - v - u| <= 32765; a clipped score, h = +-kClip, would have to lie beyond
// u + v, |u + v| <= 2 kBound < kClip, to be on the wrong side.
#pragma once

#include "network.hpp"

namespace transposable::TP_ISA {

inline constexpr int kClip = 16383;
inline constexpr int kBound = 8191;

template <int P>  // tiles of side m <= P; rows and columns m .. P - 1 hold -kClip, never kept
struct Block16 {
  static constexpr int kWords = (P + 15) / 16;
  I16 h[P * P];
  I16 u[P], v[P];
  I16 kept[P * kWords];  // bit j % 16 of kept[i * kWords + j / 16]
};

// One half round: the row potentials from the column potentials, or the reverse. The step from the
// old value to the midpoint is lengthened by relax / 8 of itself.
template <int P, int N, bool Rows>
__attribute__((noinline)) void half_round(Block16<P>& block, int n, int m, int relax) {
  I16* const target = Rows ? block.u : block.v;
  const I16* const other = Rows ? block.v : block.u;
  const I16 low = splat<I16>(-kBound), high = splat<I16>(kBound);
  for (int line = 0; line < m; ++line) {
    I16 x[P];
#pragma GCC unroll 64
    for (int k = 0; k < P; ++k) x[k] = block.h[Rows ? line * P + k : k * P + line] - other[k];
    I16 nth, next;
    order_statistics<P, N>(x, n, nth, next);
    // The midpoint lies within +-24574; cut to +-kBound, the steps below stay within 16 bits.
    I16 middle = min(max(floor_average(nth, next), low), high);
    if (relax) {
      const I16 step = middle - target[line];
      if (relax & 4) middle += step >> 1;
      if (relax & 2) middle += step >> 2;
      if (relax & 1) middle += step >> 3;
      middle = min(max(middle, low), high);
    }
    target[line] = middle;
  }
}

struct Verdict {
  std::uint32_t proved;  // lanes whose kept entries are optimal
  std::uint32_t tied;    // lanes with a tie at the threshold of some row
};

// Rows choose the entries above their midpoint, and leave it in block.u.
template <int P, int N>
__attribute__((noinline)) Verdict select_and_prove(Block16<P>& block, int n, int m) {
  constexpr int words = Block16<P>::kWords;
  I16 count[P];
#pragma GCC unroll 64
  for (int j = 0; j < P; ++j) count[j] = I16{};
  I16 good = splat<I16>(-1), tied{};
  for (int i = 0; i < m; ++i) {
    I16 x[P];
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) x[j] = block.h[i * P + j] - block.v[j];
    I16 nth, next;
    order_statistics<P, N>(x, n, nth, next);
    const I16 u = floor_average(nth, next);
    // Without a tie the row keeps exactly n. The bound on u is the one of the proof above.
    tied |= nth == next;
    good &= (u <= splat<I16>(kBound)) & (u >= splat<I16>(-kBound));
    block.u[i] = u;
    I16 bits[words];
#pragma GCC unroll 4
    for (int w = 0; w < words; ++w) bits[w] = I16{};
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
      const I16 above = block.h[i * P + j] - block.v[j] > u;
      count[j] = add_where(above, count[j], splat<I16>(1));
      bits[j / 16] = add_where(above, bits[j / 16], splat<I16>(1u << j % 16));
    }
#pragma GCC unroll 4
    for (int w = 0; w < words; ++w) block.kept[i * words + w] = bits[w];
  }
  const I16 wanted = splat<I16>(n);
#pragma GCC unroll 64
  for (int j = 0; j < P; ++j)
    if (j < m) good &= (count[j] == wanted);
  return {lane_bits(good & ~tied), lane_bits(tied)};
}

// ---- reading scores ------------------------------------------------------------------------------

// How a stored score becomes the score that is maximised, on its bits: |x|, x, -|x| or -x.
struct SignRule {
  std::uint32_t keep;  // 0x7fffffff for the magnitude, else all ones
  std::uint32_t flip;  // 0x80000000 to negate, else 0

  TP_INLINE F32 apply(F32 x) const {
    const I32 bits = reinterpret_cast<I32>(x);
    return reinterpret_cast<F32>((bits & static_cast<std::int32_t>(keep)) ^ static_cast<std::int32_t>(flip));
  }
};

// Sum of magnitudes over m lines of `count` floats (a multiple of 2 * kLanes32). NaN and infinity show.
TP_INLINE float sum_magnitudes(const float* const* lines, int m, int count) {
  F32 total[2] = {};
  for (int i = 0; i < m; ++i)
    for (int k = 0; k < count; k += 2 * kLanes32)
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const I32 bits = load<I32>(lines[i] + k + q * kLanes32) & 0x7fffffff;
        total[q] += reinterpret_cast<F32>(bits);
      }
  const F32 all = total[0] + total[1];
  float sum = 0;
  for (int lane = 0; lane < kLanes32; ++lane) sum += all[lane];
  return sum;
}

// The low halves of the 32-bit elements of (a, b).
TP_INLINE I16 low_halves(F32 a, F32 b) {
  return evens(reinterpret_cast<I16>(a), reinterpret_cast<I16>(b));
}

// Fills block.h from m lines of kLanes16 * m consecutive floats: lane t holds the tile of columns
// t * m .. t * m + m - 1. `scale` is a power of two.
template <int P>
__attribute__((noinline)) void read_scores(Block16<P>& block, const float* const* lines, int m,
                                           float scale, SignRule sign) {
  // Adding 1.5 * 2^23 rounds to nearest, and leaves the integer in the low half of the bits.
  const F32 magic = splat<F32>(12582912.0f), factor = splat<F32>(scale);
  const F32 top = splat<F32>(static_cast<float>(kClip)), bottom = splat<F32>(static_cast<float>(-kClip));
  auto rounded = [&](const float* from) __attribute__((always_inline)) {
    return min(max(sign.apply(load<F32>(from)) * factor, bottom), top) + magic;
  };
  if (m == P) {
    for (int i = 0; i < P; ++i) {
      I16 narrow[P];
#pragma GCC unroll 64
      for (int k = 0; k < P; ++k)
        narrow[k] = low_halves(rounded(lines[i] + 2 * k * kLanes32), rounded(lines[i] + (2 * k + 1) * kLanes32));
      deinterleave<P>(narrow, block.h + i * P, 1);
    }
    return;
  }
  for (int e = 0; e < P * P; ++e) block.h[e] = splat<I16>(-kClip);
  for (int i = 0; i < m; ++i)
    for (int k = 0; k < m; ++k) {
      const I16 narrow = low_halves(rounded(lines[i] + 2 * k * kLanes32), rounded(lines[i] + (2 * k + 1) * kLanes32));
      std::int16_t values[kLanes16];
      store(values, narrow);
      for (int e = 0; e < kLanes16; ++e) {
        const int position = k * kLanes16 + e;
        reinterpret_cast<std::int16_t*>(block.h + i * P + position % m)[position / m] = values[e];
      }
    }
}

}  // namespace transposable::TP_ISA
