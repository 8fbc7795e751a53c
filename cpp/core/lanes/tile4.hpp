// Tiles of 4 x 4 by enumeration: the best of all 90 (2:4) or 24 (1:4) masks, one tile in each 32-bit
// lane. The time does not depend on the scores, ties included.
//
// With rows x0 .. x3 let s = x0 + x1, t = x2 + x3, d = x0 - x1, d' = x2 - x3, e = s - t. For 2:4 let
// c_j be the number that column j keeps in the two upper rows, so 2 - c_j below. Twice the objective
// is then
//
//   sum_j (s_j + t_j)  +  sum_j (c_j - 1) e_j  +  G
//
// where in the columns with c_j = 1, the singles, the upper rows keep one each, at best the half with
// the larger d in row 0, which adds to G the sum of |differences| of d, and likewise d' below. The
// column counts sum to 4, which leaves 8 cases (6 * 6 + 6 * 8 + 6 = 90 masks):
//
//   all four single:             top2(d) - bottom2(d) + top2(d') - bottom2(d')
//   b, c single, {a, z} the rest: |d_b - d_c| + |d'_b - d'_c| + |e_a - e_z|     (6 pairs)
//   no single:                   top2(e) - bottom2(e)
//
// For 1:4 the upper rows take two columns a, b, the lower rows the others c, z (6 pairs):
//   e_a + e_b + |d_a - d_b| + |d'_c - d'_z|   plus a constant.
//
// Decisions are kept in sign bits of differences, so that no comparison has to be made twice.
#pragma once

#include "dual16.hpp"

namespace transposable::TP_ISA {

struct Block4 {
  I32 q[16];     // scores in fixed point, entry 4 i + j
  I32 words[4];  // row i of the mask: byte j is 0 or 1
  I32 exponent;  // score = q * 2^(exponent - 153)
};

namespace detail4 {

// Differences x_a - x_b of the pairs 01, 02, 03, 12, 13, 23; the sign bit set means that b wins.
struct Pairs {
  I32 difference[6];

  TP_INLINE explicit Pairs(const I32* x)
      : difference{x[0] - x[1], x[0] - x[2], x[0] - x[3], x[1] - x[2], x[1] - x[3], x[2] - x[3]} {}

  TP_INLINE I32 magnitude(int pair) const { return max(difference[pair], -difference[pair]); }
  // The two largest minus the two smallest: the best of the three ways to split in halves.
  TP_INLINE I32 halves(const I32* x) const {
    const I32 across = (x[0] + x[1]) - (x[2] + x[3]);
    return max(magnitude(0) + magnitude(5), max(across, -across));
  }
};

inline constexpr int kPairOf[4][4] = {{-1, 0, 1, 2}, {0, -1, 3, 4}, {1, 3, -1, 5}, {2, 4, 5, -1}};
TP_INLINE constexpr int complement(int pair) { return 5 - pair; }

// Sign bit: column j wins against k.
TP_INLINE I32 wins(const Pairs& pairs, int j, int k) {
  const I32 d = pairs.difference[kPairOf[j][k]];
  return j < k ? ~d : d;
}

// Sign bits of the columns in the upper half: among all four where `all` is set, within the pair
// where chosen[pair] is set, none where neither is.
template <bool WithAll, bool Complement>
TP_INLINE void upper_half(const Pairs& pairs, const I32* chosen, I32 all, I32* up) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int a = j == 0 ? 1 : 0, b = j <= 1 ? 2 : 1, c = j == 3 ? 2 : 3;
    const I32 wa = wins(pairs, j, a), wb = wins(pairs, j, b), wc = wins(pairs, j, c);
    auto pick = [&](int k) __attribute__((always_inline)) {
      const int pair = kPairOf[j][k];
      return chosen[Complement ? complement(pair) : pair];
    };
    I32 result = (pick(a) & wa) | (pick(b) & wb) | (pick(c) & wc);
    if constexpr (WithAll) result |= all & ((wa & wb) | (wa & wc) | (wb & wc));
    up[j] = result;
  }
}

}  // namespace detail4

// Reads 4 lines of 4 * kLanes32 scores. Returns the lanes that need the wide solver: NaN, infinity,
// or all so small that the scale would overflow.
template <class Score>
TP_INLINE std::uint32_t read_scores4(Block4& block, const Score* const* lines, SignRule sign) {
  I32 largest{};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    I32 raw[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) raw[k] = reinterpret_cast<I32>(load_floats(lines[i] + k * kLanes32));
    deinterleave<4>(raw, block.q + 4 * i, 1);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) largest = max(largest, block.q[4 * i + j] & 0x7fffffff);
  }
  // The power of two that puts the largest magnitude of the tile into [2^26, 2^27). Every score is
  // then off by less than 1, a mask by less than 8, and the objective is at least 2^26.
  const I32 exponent = largest >> 23;
  const I32 scale = (280 - max(exponent, splat<I32>(26))) << 23;
  block.exponent = max(exponent, splat<I32>(26));
#pragma GCC unroll 16
  for (int e = 0; e < 16; ++e) {
    const F32 score = sign.apply(reinterpret_cast<F32>(block.q[e])) * reinterpret_cast<F32>(scale);
    block.q[e] = __builtin_convertvector(score, I32);
  }
  const I32 special = (largest >= splat<I32>(0x7f800000)) | ((exponent < splat<I32>(26)) & (largest > I32{}));
  return lane_bits(special);
}

// N = 2 or 1; `flip` inverts the mask.
template <int N>
TP_INLINE void solve4(Block4& block, bool flip) {
  using namespace detail4;
  I32 d[4], dd[4], e[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const I32 x0 = block.q[j], x1 = block.q[4 + j], x2 = block.q[8 + j], x3 = block.q[12 + j];
    d[j] = x0 - x1;
    dd[j] = x2 - x3;
    e[j] = (x0 + x1) - (x2 + x3);
  }
  const Pairs pd(d), pdd(dd), pe(e);
  I32 value[6];
  I32 best;
#pragma GCC unroll 6
  for (int p = 0; p < 6; ++p) {
    constexpr int first[6] = {0, 0, 0, 1, 1, 2}, second[6] = {1, 2, 3, 2, 3, 3};
    if constexpr (N == 2)
      value[p] = pd.magnitude(p) + pdd.magnitude(p) + pe.magnitude(complement(p));
    else
      value[p] = e[first[p]] + e[second[p]] + pd.magnitude(p) + pdd.magnitude(complement(p));
    best = p == 0 ? value[0] : max(best, value[p]);
  }
  I32 all{}, none{};
  I32 open = splat<I32>(-1);  // sign bit: no case chosen yet
  if constexpr (N == 2) {
    const I32 singles = pd.halves(d) + pdd.halves(dd), pairs = pe.halves(e);
    best = max(best, max(singles, pairs));
    all = ~(singles - best);
    open = ~all;
    none = open & ~(pairs - best);
    open &= ~none;
  }
  I32 chosen[6];
#pragma GCC unroll 6
  for (int p = 0; p < 6; ++p) {
    chosen[p] = open & ~(value[p] - best);
    open &= ~chosen[p];
  }
  I32 row[4][4];
  I32 upper[4], lower[4], both[4];
  upper_half<N == 2, false>(pd, chosen, all, upper);
  if constexpr (N == 2) {
    upper_half<true, false>(pdd, chosen, all, lower);
    upper_half<true, true>(pe, chosen, none, both);
  } else {
    upper_half<false, true>(pdd, chosen, all, lower);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const int a = j == 0 ? 1 : 0, b = j <= 1 ? 2 : 1, c = j == 3 ? 2 : 3;
    // N = 2: column j is single. N = 1: the upper rows keep column j.
    const I32 split = all | chosen[kPairOf[j][a]] | chosen[kPairOf[j][b]] | chosen[kPairOf[j][c]];
    if constexpr (N == 2) {
      const I32 below = ~split & ~both[j];
      row[0][j] = both[j] | upper[j];
      row[1][j] = both[j] | (split & ~upper[j]);
      row[2][j] = below | lower[j];
      row[3][j] = below | (split & ~lower[j]);
    } else {
      row[0][j] = upper[j];
      row[1][j] = split & ~upper[j];
      row[2][j] = lower[j];
      row[3][j] = ~split & ~lower[j];
    }
  }
  const I32 inverted = splat<I32>(flip ? 0x01010101 : 0);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    I32 word = inverted;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) word ^= (row[i][j] >> (31 - 8 * j)) & (1 << 8 * j);
    block.words[i] = word;
  }
}

}  // namespace transposable::TP_ISA
