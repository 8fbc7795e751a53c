// Dual iterations on many tiles at once, one tile in each 16-bit lane, and the proof of optimality.
//
// A tile's scores become h = round(a * 2^s) - c, clipped to +-kClip (c is below left out). With potentials u, v one round sets
//   u_i = midpoint of the N-th and (N+1)-th largest of (h_ij - v_j) in row i, then
//   v_j = midpoint of the N-th and (N+1)-th largest of (h_ij - u_i) in column j.
// When the entries with h_ij - v_j > u_i are exactly N in every row and column, that mask is
// optimal, and not only for the rounded scores: rounding is monotone, so kept entries have
// a * 2^s >= u_i + v_j + 1/2 and pruned ones a * 2^s <= u_i + v_j + 1/2. This is complementary
// slackness in real numbers with the potentials (u_i + c + 1/2) / 2^s and v_j / 2^s.
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
// old value to the midpoint is lengthened by 2^-shift of itself (shift 15: not at all).
template <int P, int N, bool Rows>
__attribute__((noinline)) void half_round(Block16<P>& block, int n, int m, int shift) {
  I16* const target = Rows ? block.u : block.v;
  const I16* const other = Rows ? block.v : block.u;
  const I16 low = splat<I16>(-kBound), high = splat<I16>(kBound);
  for (int line = 0; line < m; ++line) {
    I16 x[P];
#pragma GCC unroll 64
    for (int k = 0; k < P; ++k) x[k] = block.h[Rows ? line * P + k : k * P + line] - other[k];
    I16 nth, next;
    order_statistics<P, N>(x, n, nth, next);
    // |middle| <= 24574, so that the step fits 16 bits.
    const I16 middle = floor_average(nth, next), step = middle - target[line];
    target[line] = min(max(add_saturated(middle, step >> shift), low), high);
  }
}

// A first guess of the column potentials: how far the mean of each column is from the centre.
template <int P>
TP_INLINE void guess_columns(Block16<P>& block, int m) {
  constexpr int bits = P == 8 ? 3 : P == 16 ? 4 : P == 32 ? 5 : 6;
  if (m < P) {
    for (int j = 0; j < P; ++j) block.v[j] = I16{};
    return;
  }
  I16 sum[P];
#pragma GCC unroll 64
  for (int j = 0; j < P; ++j) sum[j] = block.h[j] >> bits;
  for (int i = 1; i < P; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) sum[j] += block.h[i * P + j] >> bits;
#pragma GCC unroll 64
  for (int j = 0; j < P; ++j) block.v[j] = min(max(sum[j], splat<I16>(-kBound)), splat<I16>(kBound));
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

  template <class F>
  TP_INLINE F apply(F x) const {
    using Ints = decltype(x < x);
    const Ints bits = reinterpret_cast<Ints>(x);
    return reinterpret_cast<F>((bits & static_cast<std::int32_t>(keep)) ^ static_cast<std::int32_t>(flip));
  }
};

// The low halves of the 32-bit elements of (a, b).
TP_INLINE I16 low_halves(F32 a, F32 b) {
  return evens(reinterpret_cast<I16>(a), reinterpret_cast<I16>(b));
}

// Fills block.h from m lines of kLanes16 * m consecutive scores: lane t holds the tile of columns
// t * m .. t * m + m - 1. `scale` is a power of two; `centre` is taken off the scaled scores.
// Returns the sum of all magnitudes as stored, in which NaN and infinity show.
template <int P, bool Magnitude, class Score>
__attribute__((noinline)) float read_scores(Block16<P>& block, const Score* const* lines, int m,
                                            float scale, int centre, SignRule sign) {
  // Adding 1.5 * 2^23 rounds to nearest, once and exactly, and leaves the integer in the low half.
  const F32 magic = splat<F32>(static_cast<float>(12582912 - centre)), factor = splat<F32>(scale);
  const F32 top = splat<F32>(static_cast<float>(centre + kClip));
  const F32 bottom = splat<F32>(static_cast<float>(centre - kClip));
  // A magnitude is cut from above only, before it gets its sign: centre +- kClip lie on both sides of 0.
  const F32 limit = splat<F32>(static_cast<float>((sign.flip ? -centre : centre) + kClip));
  const F32 direction = splat<F32>(sign.flip ? -1.0f : 1.0f);
  F32 sum_even{}, sum_odd{};
  auto rounded = [&](const Score* from, F32& sum) __attribute__((always_inline)) {
    const F32 raw = load_floats(from);
    const F32 magnitude = reinterpret_cast<F32>(reinterpret_cast<I32>(raw) & 0x7fffffff);
    sum += magnitude;
    if constexpr (Magnitude) return min(magnitude * factor, limit) * direction + magic;
    return min(max(sign.apply(raw) * factor, bottom), top) + magic;
  };
  auto narrow = [&](const Score* from) __attribute__((always_inline)) {
    const F32 first = rounded(from, sum_even), second = rounded(from + kLanes32, sum_odd);
    return low_halves(first, second);
  };
  if (m == P) {
    for (int i = 0; i < P; ++i) {
      I16 line[P];
      if (P >= 32 && i + 2 < P)  // see WaveSolver::prefetch
        for (int k = 0; k < kLanes16 * P; k += 64 / static_cast<int>(sizeof(Score)))
          __builtin_prefetch(lines[i + 2] + k, 0, 3);
#pragma GCC unroll 64
      for (int k = 0; k < P; ++k) line[k] = narrow(lines[i] + k * kLanes16);
      deinterleave<P>(line, block.h + i * P, 1);
    }
  } else {
    for (int e = 0; e < P * P; ++e) block.h[e] = splat<I16>(-kClip);
    for (int i = 0; i < m; ++i)
      for (int k = 0; k < m; ++k) {
        std::int16_t values[kLanes16];
        store(values, narrow(lines[i] + k * kLanes16));
        int tile = k * kLanes16 / m, column = k * kLanes16 % m;
        for (int e = 0; e < kLanes16; ++e) {
          reinterpret_cast<std::int16_t*>(block.h + i * P + column)[tile] = values[e];
          if (++column == m) column = 0, ++tile;
        }
      }
  }
  return reduce_add(sum_even + sum_odd);
}

}  // namespace transposable::TP_ISA
