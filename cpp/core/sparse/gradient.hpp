// The weight gradient of some rows: columns that the same rows keep make a small dense product, with
// lanes along the samples. Rules of lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"
#include "kernels.hpp"
#include "panel.hpp"

namespace transposable::TP_ISA {

// a and b, each added to itself with lanes D apart changed over: a's sums where the lane lacks the
// bit D, and b's where it has it.
template <int D, int... Lane>
TP_INLINE F32 folded(F32 a, F32 b, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = sizeof...(Lane);
  return __builtin_shufflevector(a, b, (Lane & D ? lanes + Lane : Lane)...) +
         __builtin_shufflevector(a, b, (Lane & D ? lanes + Lane - D : Lane + D)...);
}

// Lane i of the result is the sum of all lanes of rows[i].
template <int D = kLanes32 / 2>
TP_INLINE F32 sums_of(F32* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i)
    rows[i] = folded<D>(rows[i], rows[i + D], std::make_integer_sequence<int, kLanes32>{});
  if constexpr (D == 1)
    return rows[0];
  else
    return sums_of<D / 2>(rows);
}

// Columns at a time, by rows: as many sums as the registers hold beside the samples.
constexpr int columns_at_once(int rows) {
#if TP_BYTES == 64
  constexpr int columns[] = {0, 12, 12, 8, 6, 4, 4, 3, 2};
#else
  constexpr int columns[] = {0, 8, 6, 4, 3, 2, 2, 1, 1};
#endif
  return columns[rows];
}

// A few columns of one type: all that one function call works on.
struct Part {
  const float *rows[8], *columns[12];
  float* out[8];                 // row of the gradient, by row
  const std::uint32_t* entries;  // by column; the low half is its place in that row
  int samples;
};

// out[r][place of entries[j]] (+)= sum_s rows[r][s] columns[j][s]
template <int N, int C>
void gradient_of(const Part& part, bool add) {
  constexpr int L = kLanes32, count = N * C, padded = (count + L - 1) / L * L;
  F32 sums[padded];
#pragma GCC unroll 32
  for (int i = 0; i < padded; ++i) sums[i] = F32{};
  const float *row[N], *column[C];
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) row[r] = part.rows[r];
#pragma GCC unroll 16
  for (int j = 0; j < C; ++j) column[j] = part.columns[j];
  const std::int64_t samples = part.samples;
  for (std::int64_t s = 0; s < samples; s += L) {
    // The fewer of the two wait in registers for the others, which come one by one.
    if constexpr (N < C) {
      F32 dy[N];
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) dy[r] = load<F32>(row[r] + s);
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) {
        const F32 x = load<F32>(column[j] + s);
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) sums[j * N + r] += x * dy[r];
      }
    } else {
      F32 x[C];
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) x[j] = load<F32>(column[j] + s);
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) {
        const F32 dy = load<F32>(row[r] + s);
#pragma GCC unroll 16
        for (int j = 0; j < C; ++j) sums[j * N + r] += x[j] * dy;
      }
    }
  }
  float found[padded];
#pragma GCC unroll 8
  for (int first = 0; first < padded; first += L) store(found + first, sums_of(sums + first));
#pragma GCC unroll 16
  for (int j = 0; j < C; ++j) {
    const std::int64_t place = part.entries[j] & 0xffffu;
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      float& to = part.out[r][place];
      to = add ? to + found[j * N + r] : found[j * N + r];
    }
  }
}

using PartGradient = void (*)(const Part&, bool);

// The function for n rows and c columns is at [n - 1][c - 1].
struct PartTable {
  PartGradient parts[8][12];

  constexpr PartTable() : parts{} { rows(std::make_integer_sequence<int, 8>{}); }
  template <int... N>
  constexpr void rows(std::integer_sequence<int, N...>) {
    (columns<N + 1>(std::make_integer_sequence<int, columns_at_once(N + 1)>{}), ...);
  }
  template <int N, int... C>
  constexpr void columns(std::integer_sequence<int, C...>) {
    ((parts[N - 1][C] = gradient_of<N, C + 1>), ...);
  }
};
inline constexpr PartTable part_table;

inline void gradient(const RowsGradient& group) {
  Part part;
  part.samples = group.samples;
  for (int first = 0, last = 0; first < group.most && group.columns[first]; first = last) {
    const unsigned type = group.columns[first] >> 16;
    while (last < group.most && group.columns[last] >> 16 == type) ++last;
    int n = 0;
    for (unsigned rest = type; rest; rest &= rest - 1, ++n) {
      const int row = __builtin_ctz(rest);
      part.rows[n] = group.dy + row * group.stride;
      part.out[n] = group.gradient + row * group.gradient_stride;
    }
    // Equal shares rather than full ones and a rest.
    const int most = columns_at_once(n);
    int left = last - first;
    part.entries = group.columns + first;
    for (int parts = (left + most - 1) / most; parts > 0; --parts) {
      const int share = (left + parts - 1) / parts;
      for (int j = 0; j < share; ++j)
        part.columns[j] = group.x + (part.entries[j] & 0xffffu) * group.stride;
      part_table.parts[n - 1][share - 1](part, group.add);
      part.entries += share;
      left -= share;
    }
  }
}

}  // namespace transposable::TP_ISA
