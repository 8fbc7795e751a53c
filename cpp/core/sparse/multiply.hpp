// One block of a stream times one panel. Sums stay in registers from the block's first run to its
// last: each type has a loop of its own, in which the rows that take part are known. Rules of
// lanes/vec.hpp.
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

template <int R, int K, unsigned Type, class Value>
TP_INLINE void add_run(const std::uint16_t*& index, int count, const Value*& values, const float* x,
                       F32 (&sums)[R][K]) {
  constexpr int kept = __builtin_popcount(Type);
  do {
    const float* channel = x + static_cast<std::int64_t>(*index++) * (K * kLanes32);
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
    values += kept;
  } while (--count);
}

#define TP_TYPE(t) \
  case (t):        \
    add_run<R, K, (t), Value>(index, count, values, block.x, sums); \
    break;
#define TP_TYPES4(t) TP_TYPE(t) TP_TYPE((t) + 1) TP_TYPE((t) + 2) TP_TYPE((t) + 3)
#define TP_TYPES16(t) TP_TYPES4(t) TP_TYPES4((t) + 4) TP_TYPES4((t) + 8) TP_TYPES4((t) + 12)
#define TP_TYPES64(t) TP_TYPES16(t) TP_TYPES16((t) + 16) TP_TYPES16((t) + 32) TP_TYPES16((t) + 48)

template <int R, int K, class Value>
void multiply_block(const BlockProduct& block) {
  F32 sums[R][K];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
      sums[r][k] = block.bias ? spread(block.bias + r) : load<F32>(block.y + (r * K + k) * kLanes32);
  const std::uint16_t* index = block.index;
  const Value* values = static_cast<const Value*>(block.values);
  for (;;) {
    const unsigned type = index[0];
    const int count = index[1];
    index += 2;
    if (!type) break;
    if constexpr (R == 8) {
      switch (type) {
        TP_TYPE(1) TP_TYPE(2) TP_TYPE(3) TP_TYPES4(4) TP_TYPES4(8) TP_TYPES4(12)
        TP_TYPES16(16) TP_TYPES16(32) TP_TYPES16(48) TP_TYPES64(64) TP_TYPES64(128) TP_TYPES64(192)
        default: __builtin_unreachable();
      }
    } else {
      switch (type) {
        TP_TYPE(1) TP_TYPE(2) TP_TYPE(3) TP_TYPES4(4) TP_TYPES4(8) TP_TYPES4(12)
        default: __builtin_unreachable();
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) store(block.y + (r * K + k) * kLanes32, sums[r][k]);
}

#undef TP_TYPES64
#undef TP_TYPES16
#undef TP_TYPES4
#undef TP_TYPE

// As many sums as the registers hold.
#if TP_BYTES == 64
inline constexpr int kVectors4 = 6, kVectors8 = 3;
#else
inline constexpr int kVectors4 = 3, kVectors8 = 1;
#endif

template <int R, int K, class Value>
void multiply_with(int vectors, const BlockProduct& block) {
  if (vectors == K) return multiply_block<R, K, Value>(block);
  if constexpr (K > 1) multiply_with<R, K - 1, Value>(vectors, block);
}

template <class Value>
void multiply_of(int row_block, int vectors, const BlockProduct& block) {
  if (row_block == 8)
    multiply_with<8, kVectors8, Value>(vectors, block);
  else
    multiply_with<4, kVectors4, Value>(vectors, block);
}

inline void multiply(int row_block, int vectors, DType values, const BlockProduct& block) {
  if (values == DType::bf16)
    multiply_of<BFloat16>(row_block, vectors, block);
  else
    multiply_of<float>(row_block, vectors, block);
}

}  // namespace transposable::TP_ISA
