// The same dual problem in 32-bit lanes, for tiles that 16 bits did not settle, and the choice among
// exactly tied scores.
//
// Scores are q = round(a * 2^s) with the largest magnitude of the tile in [2^25, 2^26); potentials
// stay within +-kBound32 = 2^28, so q - v fits easily. Rounding moves the objective by at most one
// unit for each kept entry, 2^-20 of it as long as the mean score is above 2^20 (the caller checks).
#pragma once

#include "dual16.hpp"

namespace transposable::TP_ISA {

inline constexpr std::int32_t kBound32 = 1 << 28;
inline constexpr std::int32_t kNever32 = -(1 << 29);  // below every q - v of a real entry

template <int P>
struct Block32 {
  static constexpr int kWords = (P + 31) / 32;
  I32 q[P * P];
  I32 u[P], v[P];
  I32 kept[P * kWords];  // bit j % 32 of kept[i * kWords + j / 32]
  I32 count[P];          // kept entries of each column
};

// Fills block.q from m lines of kLanes32 * m floats, already scaled.
template <int P>
__attribute__((noinline)) void read_scores32(Block32<P>& block, const float* const* lines, int m) {
  auto rounded = [](const float* from) __attribute__((always_inline)) {
    const F32 x = load<F32>(from);
    return __builtin_convertvector(x + (x < F32{} ? splat<F32>(-0.5f) : splat<F32>(0.5f)), I32);
  };
  if (m == P) {
    for (int i = 0; i < P; ++i) {
      I32 line[P];
#pragma GCC unroll 64
      for (int k = 0; k < P; ++k) line[k] = rounded(lines[i] + k * kLanes32);
      deinterleave<P>(line, block.q + i * P, 1);
    }
    return;
  }
  for (int e = 0; e < P * P; ++e) block.q[e] = splat<I32>(kNever32);
  for (int i = 0; i < m; ++i)
    for (int k = 0; k < m; ++k) {
      const I32 values = rounded(lines[i] + k * kLanes32);
      for (int e = 0; e < kLanes32; ++e) {
        const int position = k * kLanes32 + e;
        block.q[i * P + position % m][position / m] = values[e];
      }
    }
}

template <int P, bool Rows>
__attribute__((noinline)) void half_round32(Block32<P>& block, int n, int m) {
  I32* const target = Rows ? block.u : block.v;
  const I32* const other = Rows ? block.v : block.u;
  for (int line = 0; line < m; ++line) {
    I32 x[P];
#pragma GCC unroll 64
    for (int k = 0; k < P; ++k) x[k] = block.q[Rows ? line * P + k : k * P + line] - other[k];
    I32 nth, next;
    order_statistics<P, 0>(x, n, nth, next);
    const I32 middle = floor_average(nth, next);
    target[line] = min(max(middle, splat<I32>(-kBound32)), splat<I32>(kBound32));
  }
}

struct Selection {
  std::uint32_t proved;  // lanes whose kept entries are optimal
  std::uint32_t tied;    // lanes with a tie at the threshold of some row
  int excess;            // units too many in columns, over all lanes
};

// Every row takes its n best. Ties are settled after all else is known, rows in order, in favour of
// the columns that hold the least. Kept entries then have q - v >= u, pruned ones q - v <= u: where
// every column holds n, the mask is optimal.
template <int P>
__attribute__((noinline)) Selection select32(Block32<P>& block, int n, int m) {
  constexpr int words = Block32<P>::kWords;
  I32 missing[P];
  std::uint32_t tied_lanes = 0;
  std::uint64_t tied_rows = 0;
  for (int j = 0; j < P; ++j) block.count[j] = I32{};
  for (int i = 0; i < m; ++i) {
    I32 x[P];
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) x[j] = block.q[i * P + j] - block.v[j];
    I32 nth, next;
    order_statistics<P, 0>(x, n, nth, next);
    const I32 u = floor_average(nth, next);
    block.u[i] = u;
    missing[i] = splat<I32>(n);
    I32 bits[words] = {};
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
      const I32 above = block.q[i * P + j] - block.v[j] > u;
      block.count[j] = add_where(above, block.count[j], splat<I32>(1));
      missing[i] = add_where(above, missing[i], splat<I32>(-1));
      bits[j / 32] = add_where(above, bits[j / 32], splat<I32>(static_cast<std::int32_t>(1u << j % 32)));
    }
    for (int w = 0; w < words; ++w) block.kept[i * words + w] = bits[w];
    const std::uint32_t ties = lane_bits(nth == next);
    tied_lanes |= ties;
    if (ties) tied_rows |= std::uint64_t{1} << i;
  }
  for (; tied_rows; tied_rows &= tied_rows - 1) {
    const int i = __builtin_ctzll(tied_rows);
    I32 key[P], sorted[P];
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
      const I32 tie = block.q[i * P + j] - block.v[j] == block.u[i];
      const int turn = j >= i ? j - i : j - i + m;  // all-equal rows take turns
      key[j] = sorted[j] = tie ? -(block.count[j] * 64 + turn) : splat<I32>(kNever32);
    }
    sort_descending<P>(sorted);
    I32 threshold = splat<I32>(1);  // above all keys: nothing missing, nothing taken
#pragma GCC unroll 64
    for (int k = 0; k < P; ++k) threshold = missing[i] == splat<I32>(k + 1) ? sorted[k] : threshold;
#pragma GCC unroll 64
    for (int j = 0; j < P; ++j) {
      const I32 take = key[j] >= threshold;
      block.count[j] = add_where(take, block.count[j], splat<I32>(1));
      I32& word = block.kept[i * words + j / 32];
      word = add_where(take, word, splat<I32>(static_cast<std::int32_t>(1u << j % 32)));
    }
  }
  I32 good = splat<I32>(-1), over{};
  for (int j = 0; j < m; ++j) {
    good &= (block.count[j] == splat<I32>(n));
    over += max(block.count[j] - n, I32{});
  }
  return {lane_bits(good), tied_lanes, reduce_add(over)};
}

}  // namespace transposable::TP_ISA
