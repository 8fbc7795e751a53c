// The weight gradient of one block: each run is a small dense product of the rows of its type and a
// few of its columns, lanes along the samples. Rules of lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"
#include "kernels.hpp"
#include "panel.hpp"

namespace transposable::TP_ISA {

// Lane i of the result is the sum of all lanes of rows[i].
template <int D = kLanes32 / 2>
TP_INLINE F32 sums_of(F32 (&rows)[kLanes32]) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i) {
    exchange<D>(rows[i], rows[i + D], std::make_integer_sequence<int, kLanes32>{});
    rows[i] += rows[i + D];
  }
  if constexpr (D == 1)
    return rows[0];
  else
    return sums_of<D / 2>(rows);
}

// Columns at a time, by rows: as many sums as the registers hold beside the rows.
constexpr int columns_at_once(int rows) {
#if TP_BYTES == 64
  constexpr int columns[] = {0, 12, 12, 8, 6, 4, 4, 3, 2};
#else
  constexpr int columns[] = {0, 6, 5, 4, 2, 2, 1, 1, 1};
#endif
  return columns[rows];
}

// out[j N + r] (+)= sum_s rows[r][s] columns[j][s]
template <int N, int C>
void gradient_of(const float* const* rows, const float* const* columns, int samples, float* out,
                 bool add) {
  constexpr int L = kLanes32, count = N * C, padded = (count + L - 1) / L * L;
  F32 sums[padded];
#pragma GCC unroll 32
  for (int i = 0; i < padded; ++i) sums[i] = F32{};
  const float *row[N], *column[C];
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) row[r] = rows[r];
#pragma GCC unroll 16
  for (int j = 0; j < C; ++j) column[j] = columns[j];
  for (std::int64_t s = 0; s < samples; s += L) {
    F32 dy[N];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) dy[r] = load<F32>(row[r] + s);
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      const F32 x = load<F32>(column[j] + s);
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r) sums[j * N + r] += x * dy[r];
    }
  }
#pragma GCC unroll 8
  for (int first = 0; first < padded; first += L) {
    F32 part[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) part[i] = sums[first + i];
    const F32 found = sums_of(part);
    if (first + L <= count) {
      store(out + first, add ? load<F32>(out + first) + found : found);
    } else {  // what follows belongs to another thread
      float rest[L];
      store(rest, found);
      const int left = count - first < L ? count - first : L;
      for (int i = 0; i < left; ++i)
        out[first + i] = add ? out[first + i] + rest[i] : rest[i];
    }
  }
}

using PartGradient = void (*)(const float* const*, const float* const*, int, float*, bool);

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

inline void gradient(const BlockGradient& block) {
  float* out = block.gradient;
  for (const std::uint16_t* index = block.index; index[0];) {
    const float* rows[8];
    int n = 0;
    for (unsigned type = index[0]; type; type &= type - 1)
      rows[n++] = block.dy + __builtin_ctz(type) * block.stride;
    const int count = index[1];
    const std::uint16_t* const channels = index + 2;
    std::uint16_t& taken = block.taken[index - block.index];
    const int first = taken;
    int last = first;
    while (last < count && channels[last] < block.end) ++last;
    taken = static_cast<std::uint16_t>(last);
    // Equal shares rather than full ones and a rest.
    const int most = columns_at_once(n);
    int left = last - first;
    const std::uint16_t* channel = channels + first;
    float* to = out + first * n;
    for (int parts = (left + most - 1) / most; parts > 0; --parts) {
      const int share = (left + parts - 1) / parts;
      const float* columns[12];
      for (int j = 0; j < share; ++j) columns[j] = block.x + *channel++ * block.stride;
      part_table.parts[n - 1][share - 1](rows, columns, block.samples, to, block.add);
      to += share * n;
      left -= share;
    }
    out += count * n;
    index = channels + count;
  }
}

}  // namespace transposable::TP_ISA
