// Rows of samples to panels and back: transposes of squares of vectors. Rules of lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"
#include "bfloat16.hpp"
#include "kernels.hpp"

namespace transposable::TP_ISA {

// Row i, lane j and row i + D, lane j - D change places wherever j has the bit D.
template <int D, int... Lane>
TP_INLINE void exchange(F32& a, F32& b, std::integer_sequence<int, Lane...>) {
  constexpr int lanes = sizeof...(Lane);
  const F32 low = __builtin_shufflevector(a, b, (Lane & D ? lanes + Lane - D : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & D ? lanes + Lane : Lane + D)...);
  a = low;
}

template <int D>
TP_INLINE void transpose_steps(F32 (&rows)[kLanes32]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes32; ++i)
      if (!(i & D)) exchange<D>(rows[i], rows[i | D], std::make_integer_sequence<int, kLanes32>{});
    transpose_steps<D / 2>(rows);
  }
}

TP_INLINE void transpose(F32 (&rows)[kLanes32]) { transpose_steps<kLanes32 / 2>(rows); }

TP_INLINE void store_samples(float* to, F32 v) { store(to, v); }
// Rounded to nearest even, as float_to_bf16.
TP_INLINE void store_samples(BFloat16* to, F32 v) {
  typedef std::uint32_t Words __attribute__((vector_size(TP_BYTES)));
  typedef std::uint16_t Halves __attribute__((vector_size(TP_BYTES / 2)));
  const Words bits = reinterpret_cast<Words>(v);
  const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Words nan = bits >> 16 | 0x40u;
  store(to, __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves));
}

TP_INLINE float sample(const float* at) { return *at; }
TP_INLINE float sample(const BFloat16* at) {
  return __builtin_bit_cast(float, static_cast<std::uint32_t>(at->bits) << 16);
}
TP_INLINE void put_sample(float* to, float v) { *to = v; }
TP_INLINE void put_sample(BFloat16* to, float v) { to->bits = float_to_bf16(v); }

template <class T>
void pack_rows(const SampleRows& x, std::int64_t samples, std::int64_t first, std::int64_t last,
               float* panel, std::int64_t width, std::int64_t stride) {
  constexpr int L = kLanes32;
  const T* const data = static_cast<const T*>(x.data);
  const std::int64_t line = x.stride;  // what is stored could be taken for a change of it
  // A few rows at a time from end to end, as memory is best read.
  for (std::int64_t s = 0; s < width; s += L) {
    const std::int64_t left = samples - s;
    for (std::int64_t c = first; c < last; c += L) {
      const std::int64_t channels = last - c < L ? last - c : L;
      float* to = panel + (c - first) * stride + s;
      const T* from = data + s * line + c;
      if (left <= 0) {
        for (std::int64_t i = 0; i < channels; ++i) store(to + i * stride, F32{});
      } else if (channels == L) {
        F32 rows[L];
        if (left >= L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) rows[i] = load_floats(from + i * line);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) rows[i] = i < left ? load_floats(from + i * line) : F32{};
        }
        transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(to + i * stride, rows[i]);
      } else {
        for (std::int64_t i = 0; i < channels; ++i)
          for (int l = 0; l < L; ++l)
            to[i * stride + l] = l < left ? sample(from + l * line + i) : 0.0f;
      }
    }
  }
}

template <class T>
void unpack_rows(const float* panel, std::int64_t width, std::int64_t samples, std::int64_t first,
                 std::int64_t last, const OutputRows& y) {
  constexpr int L = kLanes32;
  T* const data = static_cast<T*>(y.data);
  const std::int64_t line = y.stride;
  for (std::int64_t s = 0; s < samples; s += L)
    for (std::int64_t c = first; c < last; c += L) {
      const float* from = panel + (c - first) * width + s;
      if (last - c >= L) {
        F32 rows[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) rows[i] = load<F32>(from + i * width);
        transpose(rows);
        if (samples - s >= L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) store_samples(data + (s + i) * line + c, rows[i]);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i)
            if (s + i < samples) store_samples(data + (s + i) * line + c, rows[i]);
        }
      } else {
        for (std::int64_t l = 0; l < L && s + l < samples; ++l)
          for (std::int64_t i = 0; i < last - c; ++i)
            put_sample(data + (s + l) * line + c + i, from[i * width + l]);
      }
    }
}

// Rows that lie anywhere, one for each sample of the panel.
template <class T>
void pack_gathered_rows(const void* const* rows, std::int64_t first, std::int64_t last, float* panel,
                        std::int64_t width, std::int64_t stride) {
  constexpr int L = kLanes32;
  for (std::int64_t s = 0; s < width; s += L) {
    const T* line[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) line[i] = static_cast<const T*>(rows[s + i]);
    float* to = panel + s;
    std::int64_t c = first;
    for (; c + L <= last; c += L, to += L * stride) {
      F32 square[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) square[i] = load_floats(line[i] + c);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store(to + i * stride, square[i]);
    }
    for (; c < last; ++c, to += stride)
      for (int l = 0; l < L; ++l) to[l] = sample(line[l] + c);
  }
}

inline void pack_gathered(const void* const* rows, DType dtype, std::int64_t first, std::int64_t last,
                          float* panel, std::int64_t width, std::int64_t stride) {
  if (dtype == DType::bf16)
    pack_gathered_rows<BFloat16>(rows, first, last, panel, width, stride);
  else
    pack_gathered_rows<float>(rows, first, last, panel, width, stride);
}

inline void pack(const SampleRows& x, std::int64_t samples, std::int64_t first, std::int64_t last,
                 float* panel, std::int64_t width, std::int64_t stride) {
  if (x.dtype == DType::bf16)
    pack_rows<BFloat16>(x, samples, first, last, panel, width, stride);
  else
    pack_rows<float>(x, samples, first, last, panel, width, stride);
}

inline void unpack(const float* panel, std::int64_t width, std::int64_t samples, std::int64_t first,
                   std::int64_t last, const OutputRows& y) {
  if (y.dtype == DType::bf16)
    unpack_rows<BFloat16>(panel, width, samples, first, last, y);
  else
    unpack_rows<float>(panel, width, samples, first, last, y);
}

}  // namespace transposable::TP_ISA
