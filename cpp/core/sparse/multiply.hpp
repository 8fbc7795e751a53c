// Blocks of a stream times one panel. Sums stay in registers from a block's first run to its last:
// each type has a loop of its own, in which the rows that take part are known. Rules of lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"
#include "bfloat16.hpp"
#include "kernels.hpp"

namespace transposable::TP_ISA {

// x - 0 is x, bit for bit, and what compilers make a broadcast of.
TP_INLINE F32 spread(const float* from) { return *from - F32{}; }
TP_INLINE F32 spread(const BFloat16* from) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(from->bits) << 16) - F32{};
}

// Columns come in no order that a cache could foresee; the weights are asked for in time, and so are
// the samples where so few rows share them that they would be waited for.
inline constexpr int kAhead = 1024;  // bytes
inline constexpr int kScarce = 2;    // rows

// Few blocks read a panel of so many columns: it is fetched from beyond the L1 cache while those
// of the panel before it are computed, a few lines for each of them.
template <int R>
TP_INLINE void fetch_some(const float*& next) {
  constexpr int lines = R == 4 ? 6 : 0;
#pragma GCC unroll 8
  for (int i = 0; i < lines; ++i, next += 16) __builtin_prefetch(next);
}

template <int R, int K, unsigned Type, class Value>
TP_INLINE void add_column(const float* channel, const Value* values, F32 (&sums)[R][K]) {
  F32 samples[K];
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) samples[k] = load<F32>(channel + k * kLanes32);
  int used = 0;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    if (Type >> r & 1) {
      const F32 weight = spread(values + used++);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) sums[r][k] += weight * samples[k];
    }
}

#if TP_BYTES == 32
// Four columns that one row keeps: one load brings their weights, and each takes a shuffle from there.
// Where a weight meets no more samples than these, loads are what there is too much of.
template <int Row, int R, int K, class Column, int... I>
TP_INLINE void add_four_columns(const Column* column, const float* x, const float* values,
                                F32 (&sums)[R][K], std::integer_sequence<int, I...>) {
  const F32 weights = reinterpret_cast<F32>(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(values)));
  const auto add = [&](const float* channel, F32 weight) {
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) sums[Row][k] += weight * load<F32>(channel + k * kLanes32);
  };
  (add(x + static_cast<std::int64_t>(column[I]) * (K * kLanes32),
       __builtin_shufflevector(weights, weights, I, I, I, I, I, I, I, I)),
   ...);
}
#endif

// Entries of the index that so many columns take up, see run.hpp.
template <class Column>
TP_INLINE std::int64_t entries_of_columns(std::int64_t columns) {
  return sizeof(Column) == 1 ? (columns + 1) / 2 : columns;
}

template <int R, int K, unsigned Type, class Column, class Value>
TP_INLINE void add_run(const std::uint16_t*& index, int count, const Value*& values, const float* x,
                       F32 (&sums)[R][K]) {
  constexpr int kept = __builtin_popcount(Type);
  const Column* column = reinterpret_cast<const Column*>(index);
  index += entries_of_columns<Column>(count);
  do {
    const float* channel = x + static_cast<std::int64_t>(*column++) * (K * kLanes32);
    if constexpr (R == 8 && kept <= kScarce) {
      // Beyond the run it is the next type or count, which costs nothing either.
      const float* later = x + static_cast<std::int64_t>(column[kColumnsAhead - 1]) * (K * kLanes32);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) __builtin_prefetch(later + k * kLanes32);
    }
    __builtin_prefetch(reinterpret_cast<const char*>(values) + kAhead);
    add_column<R, K, Type>(channel, values, sums);
    values += kept;
  } while (--count);
}

// Columns of types that share no row and make up all rows, one of each at a time: all sums are at
// work, where those of one type alone would wait for themselves.
template <int R, int K, class Column, class Value, unsigned... Types>
TP_INLINE void add_together(const std::uint16_t*& index, int count, const Value*& values,
                            const float* x, F32 (&sums)[R][K]) {
  const Column* column = reinterpret_cast<const Column*>(index);
  const std::int64_t entries = entries_of_columns<Column>(count);
  const std::int64_t apart = entries * static_cast<std::int64_t>(2 / sizeof(Column));
  index += entries * static_cast<std::int64_t>(sizeof...(Types));
  const Value* at[sizeof...(Types)];
  int part = 0;
  ((at[part++] = values, values += __builtin_popcount(Types) * static_cast<std::int64_t>(count)), ...);
  const char* ahead = reinterpret_cast<const char*>(at[0]) + kAhead;
#if TP_BYTES == 32
  if constexpr (sizeof...(Types) == R && sizeof(Value) == sizeof(float)) {
    for (; count >= 4; count -= 4, column += 4) {
      __builtin_prefetch(ahead);
      ahead += 4 * R * sizeof(Value);
      part = 0;
      ((add_four_columns<__builtin_ctz(Types)>(column + part * apart, x, at[part], sums,
                                               std::make_integer_sequence<int, 4>{}),
        at[part++] += 4),
       ...);
    }
    if (count == 0) return;
  }
#endif
  do {
    __builtin_prefetch(ahead);
    ahead += R * sizeof(Value);
    part = 0;
    ((add_column<R, K, Types>(x + static_cast<std::int64_t>(column[part * apart]) * (K * kLanes32),
                              at[part], sums),
      at[part] += __builtin_popcount(Types), ++part),
     ...);
    ++column;
  } while (--count);
}

// A jump of its own after every run: types follow one another much alike from block to block, and
// the processor foresees each jump by itself. One jump for all, as of a switch, it gets wrong.
#define TP_NEXT          \
  {                      \
    const int type = index[0]; \
    count = index[1];    \
    index += 2;          \
    goto* runs[type];    \
  }
#define TP_RUN(t)                                                  \
  run_##t : add_run<R, K, 0x##t, Column, Value>(index, count, values, block.x, sums); \
  TP_NEXT
#define TP_LABEL(t) &&run_##t,
#define TP_TOGETHER(t, ...)                                                                       \
  run_##t : add_together<R, K, Column, Value, __VA_ARGS__>(index, count, values, block.x, sums); \
  TP_NEXT
// Every type in hexadecimal digits, 1 to f or 10 to ff; beyond f, blocks of 4 rows have those of run.hpp.
#define TP_LOW(each)                                                                                \
  each(1) each(2) each(3) each(4) each(5) each(6) each(7) each(8) each(9) each(a) each(b) each(c) each(d) each(e) each(f)
#define TP_HIGH(each, h)                                                                            \
  each(h##0) each(h##1) each(h##2) each(h##3) each(h##4) each(h##5) each(h##6) each(h##7) each(h##8) each(h##9)       \
  each(h##a) each(h##b) each(h##c) each(h##d) each(h##e) each(h##f)
#define TP_ALL(each)                                                                                \
  TP_LOW(each) TP_HIGH(each, 1) TP_HIGH(each, 2) TP_HIGH(each, 3) TP_HIGH(each, 4) TP_HIGH(each, 5)           \
  TP_HIGH(each, 6) TP_HIGH(each, 7) TP_HIGH(each, 8) TP_HIGH(each, 9) TP_HIGH(each, a) TP_HIGH(each, b)       \
  TP_HIGH(each, c) TP_HIGH(each, d) TP_HIGH(each, e) TP_HIGH(each, f)

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"  // labels as values

template <int R, int K>
TP_INLINE void begin_sums(const float* y, const float* bias, F32 (&sums)[R][K]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
      sums[r][k] = bias ? spread(bias + r) : load<F32>(y + (r * K + k) * kLanes32);
}
template <int R, int K>
TP_INLINE void end_sums(float* y, const F32 (&sums)[R][K]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) store(y + (r * K + k) * kLanes32, sums[r][k]);
}

#define TP_PAIRS(each)                                                                            \
  each(10, 1, 14) each(11, 2, 13) each(12, 3, 12) each(13, 4, 11) each(14, 5, 10) each(15, 6, 9) each(16, 7, 8) \
  each(17, 1, 2, 4, 8)
#define TP_NO_PAIRS(each)
#define TP_PAIR_LABEL(t, ...) &&run_##t,

// Two functions that differ in their labels only: a template has no way to leave some out.
#define TP_MULTIPLY(name, rows, types, pairs)                       \
  template <int K, class Column, class Value>                       \
  void name(const BlockProduct& block) {                            \
    constexpr int R = rows;                                         \
    static const void* const runs[] = {&&end, types(TP_LABEL) pairs(TP_PAIR_LABEL)}; \
    const std::uint16_t* index = block.index;                       \
    const Value* values = static_cast<const Value*>(block.values);  \
    const float* bias = block.bias;                                 \
    float* y = block.y;                                             \
    const float* next = block.next;                                 \
    std::int64_t left = block.blocks;                               \
    int count;                                                      \
    F32 sums[R][K];                                                 \
    begin_sums(y, bias, sums);                                      \
    TP_NEXT                                                         \
    types(TP_RUN) pairs(TP_TOGETHER) end : end_sums(y, sums);       \
    if (--left == 0) return;                                        \
    fetch_some<R>(next);                                            \
    y += R * K * kLanes32;                                          \
    if (bias) bias += R;                                            \
    begin_sums(y, bias, sums);                                      \
    TP_NEXT                                                         \
  }

TP_MULTIPLY(multiply_rows4, 4, TP_LOW, TP_PAIRS)
TP_MULTIPLY(multiply_rows8, 8, TP_ALL, TP_NO_PAIRS)

#pragma GCC diagnostic pop
#undef TP_MULTIPLY
#undef TP_PAIR_LABEL
#undef TP_NO_PAIRS
#undef TP_PAIRS
#undef TP_ALL
#undef TP_HIGH
#undef TP_LOW
#undef TP_LABEL
#undef TP_TOGETHER
#undef TP_RUN
#undef TP_NEXT

// As many sums as the registers hold.
#if TP_BYTES == 64
inline constexpr int kVectors4 = 6, kVectors8 = 3;
#else
inline constexpr int kVectors4 = 3, kVectors8 = 1;
#endif

template <int R, int K, class Column, class Value>
void multiply_with(int vectors, const BlockProduct& block) {
  if (vectors == K) {
    if constexpr (R == 8)
      return multiply_rows8<K, Column, Value>(block);
    else
      return multiply_rows4<K, Column, Value>(block);
  }
  if constexpr (K > 1) multiply_with<R, K - 1, Column, Value>(vectors, block);
}

template <class Value>
void multiply_of(int row_block, int vectors, const BlockProduct& block) {
  if (row_block == 8)
    multiply_with<8, kVectors8, std::uint16_t, Value>(vectors, block);
  else if (block.byte_columns)
    multiply_with<4, kVectors4, std::uint8_t, Value>(vectors, block);
  else
    multiply_with<4, kVectors4, std::uint16_t, Value>(vectors, block);
}

inline void multiply(int row_block, int vectors, DType values, const BlockProduct& block) {
  if (values == DType::bf16)
    multiply_of<BFloat16>(row_block, vectors, block);
  else
    multiply_of<float>(row_block, vectors, block);
}

}  // namespace transposable::TP_ISA
