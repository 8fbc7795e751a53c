// Vectors of the width of one instruction set, by compiler vector extensions.
//
// Everything in lanes/ is compiled once for each instruction set, into a namespace of its own
// (TP_ISA) with vectors of TP_BYTES bytes. Nothing here may call an inline function of the
// standard library that the linker could share between the copies.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if !defined(TP_ISA) || !defined(TP_BYTES)
#error "define TP_ISA and TP_BYTES: see lanes/engine_*.cpp"
#endif

#define TP_INLINE __attribute__((always_inline)) inline

namespace transposable::TP_ISA {

typedef std::int16_t I16 __attribute__((vector_size(TP_BYTES)));
typedef std::int32_t I32 __attribute__((vector_size(TP_BYTES)));
typedef float F32 __attribute__((vector_size(TP_BYTES)));

inline constexpr int kLanes16 = TP_BYTES / 2;
inline constexpr int kLanes32 = TP_BYTES / 4;

// P 32-bit numbers in a row, in pieces of at most one vector.
namespace detail {
template <int Bytes>
struct Piece;  // an alias cannot carry a dependent vector size
template <>
struct Piece<16> {
  typedef std::int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
};
template <>
struct Piece<32> {
  typedef std::int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
};
template <>
struct Piece<64> {
  typedef std::int32_t Ints __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
};
}  // namespace detail

template <int P>
struct Row {
  static constexpr int kBytes = P * 4 < TP_BYTES ? P * 4 : TP_BYTES;
  static constexpr int kPieces = P * 4 / kBytes;
  static constexpr int kPieceLanes = kBytes / 4;
  using Ints = typename detail::Piece<kBytes>::Ints;
  using Floats = typename detail::Piece<kBytes>::Floats;
};

template <class V>
TP_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
template <class V>
TP_INLINE V max(V a, V b) {
  return a > b ? a : b;
}
// floor((a + b) / 2) without overflow
template <class V>
TP_INLINE V floor_average(V a, V b) {
  return (a & b) + ((a ^ b) >> 1);
}
template <class V, class T>
TP_INLINE V splat(T x) {
  return V{} + static_cast<std::remove_cvref_t<decltype(V{}[0])>>(x);
}
template <class V>
TP_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
TP_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof v);
}

struct BFloat16 {
  std::uint16_t bits;
};

// A vector of scores as floats.
TP_INLINE F32 load_floats(const float* from) { return load<F32>(from); }
TP_INLINE F32 load_floats(const BFloat16* from) {
  typedef std::uint16_t Halves __attribute__((vector_size(TP_BYTES / 2)));
  typedef std::uint32_t Words __attribute__((vector_size(TP_BYTES)));
  return reinterpret_cast<F32>(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// a + b, cut to the range of 16 bits
TP_INLINE I16 add_saturated(I16 a, I16 b) {
#if TP_BYTES == 64
  return reinterpret_cast<I16>(_mm512_adds_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif TP_BYTES == 32
  return reinterpret_cast<I16>(_mm256_adds_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<I16>(_mm_adds_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  const I16 sum = a + b, limit = (a >> 15) ^ 0x7fff;
  return ((a ^ sum) & (b ^ sum)) < 0 ? limit : sum;
#endif
}

// All lanes combined: op(lane 0, op(lane 1, ..)) in some order.
namespace detail {
template <class V, class Op, int... I>
TP_INLINE V fold(V v, Op op, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
#pragma GCC unroll 8
  for (int half = lanes / 2; half > 0; half /= 2) {
    const V turned = half == 32   ? __builtin_shufflevector(v, v, (I + 32) % lanes...)
                     : half == 16 ? __builtin_shufflevector(v, v, (I + 16) % lanes...)
                     : half == 8  ? __builtin_shufflevector(v, v, (I + 8) % lanes...)
                     : half == 4  ? __builtin_shufflevector(v, v, (I + 4) % lanes...)
                     : half == 2  ? __builtin_shufflevector(v, v, (I + 2) % lanes...)
                                  : __builtin_shufflevector(v, v, (I + 1) % lanes...);
    v = op(v, turned);
  }
  return v;
}
}  // namespace detail

template <class V, class Op>
TP_INLINE auto reduce(V v, Op op) {
  return detail::fold(v, op, std::make_integer_sequence<int, sizeof(V) / sizeof(v[0])>{})[0];
}
template <class V>
TP_INLINE auto reduce_add(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return a + b; });
}
template <class V>
TP_INLINE auto reduce_max(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return max(a, b); });
}
template <class V>
TP_INLINE auto reduce_min(V v) {
  return reduce(v, [](V a, V b) __attribute__((always_inline)) { return min(a, b); });
}

// acc + amount in the lanes that say yes (-1), acc in the others (0)
template <class V, class Yes>
TP_INLINE V add_where(Yes yes, V acc, V amount) {
#if TP_BYTES == 64
  return yes ? acc + amount : acc;  // one masked addition
#else
  return acc + (yes & amount);
#endif
}

// One bit for each lane of a comparison result (-1 or 0), lane 0 lowest.
TP_INLINE std::uint32_t lane_bits(I16 yes) {
#if TP_BYTES == 64
  return _mm512_movepi16_mask(reinterpret_cast<__m512i>(yes));
#elif TP_BYTES == 32
  const __m256i bytes = _mm256_packs_epi16(reinterpret_cast<__m256i>(yes), _mm256_setzero_si256());
  const std::uint32_t bits = static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
  return (bits & 0xffu) | (bits >> 8 & 0xff00u);
#elif defined(__SSE2__)
  const __m128i bytes = _mm_packs_epi16(reinterpret_cast<__m128i>(yes), _mm_setzero_si128());
  return static_cast<std::uint32_t>(_mm_movemask_epi8(bytes));
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < kLanes16; ++lane) bits |= static_cast<std::uint32_t>(yes[lane] & 1) << lane;
  return bits;
#endif
}

TP_INLINE std::uint32_t lane_bits(I32 yes) {
#if TP_BYTES == 64
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(yes));
#elif TP_BYTES == 32
  return static_cast<std::uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(yes)));
#elif defined(__SSE2__)
  return static_cast<std::uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(yes)));
#else
  std::uint32_t bits = 0;
  for (int lane = 0; lane < kLanes32; ++lane) bits |= static_cast<std::uint32_t>(yes[lane] & 1) << lane;
  return bits;
#endif
}

// Even and odd elements of the concatenation (a, b).
namespace detail {
template <class V, int Start, int... I>
TP_INLINE V every_second(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + Start)...);
}
}  // namespace detail

template <class V>
TP_INLINE V evens(V a, V b) {
  return detail::every_second<V, 0>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>{});
}
template <class V>
TP_INLINE V odds(V a, V b) {
  return detail::every_second<V, 1>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>{});
}

// Splits Count vectors that hold, one after the other, elements 0, 1, .., Count - 1, 0, 1, ..:
// out[k * stride] receives all the elements k. Count is a power of two.
template <int Count, class V>
TP_INLINE void deinterleave(const V* in, V* out, int stride) {
  if constexpr (Count == 1) {
    out[0] = in[0];
  } else {
    V even[Count / 2], odd[Count / 2];
#pragma GCC unroll 64
    for (int k = 0; k < Count / 2; ++k) {
      even[k] = evens(in[2 * k], in[2 * k + 1]);
      odd[k] = odds(in[2 * k], in[2 * k + 1]);
    }
    deinterleave<Count / 2>(even, out, stride * 2);
    deinterleave<Count / 2>(odd, out + stride, stride * 2);
  }
}

// The inverse: out holds in[0][0], in[1][0], .., in[Count - 1][0], in[0][1], ..
namespace detail {
template <class V, int Start, int... I>
TP_INLINE V alternate(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int lanes = sizeof...(I);
  return __builtin_shufflevector(a, b, (Start + I / 2 + I % 2 * lanes)...);
}
}  // namespace detail

template <int Count, class V>
TP_INLINE void interleave(const V* in, V* out) {
  if constexpr (Count == 1) {
    out[0] = in[0];
  } else {
    constexpr int lanes = sizeof(V) / sizeof(in[0][0]);
    V even[Count / 2], odd[Count / 2], evens_out[Count / 2], odds_out[Count / 2];
    for (int k = 0; k < Count / 2; ++k) {
      even[k] = in[2 * k];
      odd[k] = in[2 * k + 1];
    }
    interleave<Count / 2>(even, evens_out);
    interleave<Count / 2>(odd, odds_out);
    for (int k = 0; k < Count / 2; ++k) {
      out[2 * k] = detail::alternate<V, 0>(evens_out[k], odds_out[k], std::make_integer_sequence<int, lanes>{});
      out[2 * k + 1] =
          detail::alternate<V, lanes / 2>(evens_out[k], odds_out[k], std::make_integer_sequence<int, lanes>{});
    }
  }
}

}  // namespace transposable::TP_ISA
