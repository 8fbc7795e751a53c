// Scores on their way into lanes: whole lines of a strip, or single tiles gathered side by side.
#pragma once

#include <new>

#include "dual32.hpp"
#include "job.hpp"

namespace transposable::TP_ISA {

// An aligned array; std::vector<float> would be shared between instruction sets by the linker.
class FloatArray {
 public:
  FloatArray() = default;
  FloatArray(const FloatArray&) = delete;
  FloatArray& operator=(const FloatArray&) = delete;
  ~FloatArray() { ::operator delete(data_, kAlign); }
  void allocate(std::size_t count) {
    data_ = static_cast<float*>(::operator new(count * sizeof(float), kAlign));
    for (std::size_t k = 0; k < count; ++k) data_[k] = 0;
  }
  float* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  float* data_ = nullptr;
};

TP_INLINE std::int32_t float_bits(float x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
TP_INLINE float float_of_bits(std::int32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
// 2^exponent, -126 <= exponent <= 127
TP_INLINE float power_of_two(int exponent) { return float_of_bits((exponent + 127) << 23); }

TP_INLINE int element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// `count` scores from (b, row, col) on, as stored. Doubles are rounded to float: see Tile::fetch.
inline void convert_line(const Scores& scores, std::int64_t b, std::int64_t row, std::int64_t col,
                         int count, float* out) {
  const std::int64_t at = scores.offset(b, row, col), step = scores.col_stride;
  switch (scores.dtype) {
    case DType::f32: {
      const float* from = static_cast<const float*>(scores.data) + at;
      if (step == 1)
        __builtin_memcpy(out, from, sizeof(float) * static_cast<std::size_t>(count));
      else
        for (int k = 0; k < count; ++k) out[k] = from[k * step];
      return;
    }
    case DType::bf16: {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(scores.data) + at;
      auto convert = [](std::uint16_t bits) {
        return float_of_bits(static_cast<std::int32_t>(static_cast<std::uint32_t>(bits) << 16));
      };
      if (step == 1)  // apart, so that the compiler uses vectors
        for (int k = 0; k < count; ++k) out[k] = convert(from[k]);
      else
        for (int k = 0; k < count; ++k) out[k] = convert(from[k * step]);
      return;
    }
    case DType::f16: {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(scores.data) + at;
      auto convert = [](std::uint32_t bits) {
        const std::uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
        const float finite = float_of_bits(static_cast<std::int32_t>(rest << 13)) * 0x1p112f;
        const std::uint32_t magnitude = rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13
                                                        : static_cast<std::uint32_t>(float_bits(finite));
        return float_of_bits(static_cast<std::int32_t>(sign | magnitude));
      };
      if (step == 1)
        for (int k = 0; k < count; ++k) out[k] = convert(from[k]);
      else
        for (int k = 0; k < count; ++k) out[k] = convert(from[k * step]);
      return;
    }
    case DType::f64: {
      const double* from = static_cast<const double*>(scores.data) + at;
      for (int k = 0; k < count; ++k) out[k] = static_cast<float>(from[k * step]);
      return;
    }
  }
}

// 2^exponent in double, |exponent| < 1022
TP_INLINE double double_power_of_two(int exponent) {
  const std::int64_t bits = static_cast<std::int64_t>(exponent + 1023) << 52;
  double x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

enum class TileKind { usable, zero, special };

// One tile as floats, with its largest magnitude in [2, 4): score = x * 2^exponent.
template <int P>
struct Tile {
  using Floats = typename Row<P>::Floats;
  using Ints = typename Row<P>::Ints;
  static constexpr int kPieces = Row<P>::kPieces;

  alignas(64) float x[P * P];  // row i at i * P; zero beyond m
  int exponent = 0;
  float mean = 0;  // of the m * m magnitudes

  // special: NaN, infinity, or smaller than any normal float.
  TileKind fetch(const Scores& scores, std::int64_t b, std::int64_t row, std::int64_t col, int m,
                 SignRule sign) {
    if (m < P) clear();
    if (scores.dtype == DType::f64) return fetch_double(scores, b, row, col, m, sign);
    // Pieces no longer than a row are loaded as they were stored: longer ones would wait for memory.
    Floats rows[P * kPieces];
    if (scores.dtype == DType::f32 && scores.col_stride == 1 && m == P) {
      const float* from = static_cast<const float*>(scores.data) + scores.offset(b, row, col);
      for (int i = 0; i < P; ++i)
        for (int p = 0; p < kPieces; ++p)
          rows[i * kPieces + p] = load<Floats>(from + i * scores.row_stride + p * Row<P>::kPieceLanes);
    } else {
      for (int i = 0; i < m; ++i) convert_line(scores, b, row + i, col, m, x + i * P);
      for (int k = 0; k < P * kPieces; ++k) rows[k] = load<Floats>(x + k * Row<P>::kPieceLanes);
    }
    Ints most{};
    for (int k = 0; k < P * kPieces; ++k) most = max(most, reinterpret_cast<Ints>(rows[k]) & 0x7fffffff);
    const std::int32_t largest = reduce_max(most);
    if (largest == 0) return zero();
    if (largest >= 0x7f800000 || largest < 0x00800000) return TileKind::special;
    const int top = (largest >> 23) - 127;  // largest in [2^top, 2^(top + 1))
    exponent = top - 1;
    const float factor = power_of_two(-exponent);  // within [2^-126, 2^127]
    Floats total{};
    for (int k = 0; k < P * kPieces; ++k) {
      const Floats scaled = rows[k] * factor;
      total += reinterpret_cast<Floats>(reinterpret_cast<Ints>(scaled) & 0x7fffffff);
      store(x + k * Row<P>::kPieceLanes, sign.apply(scaled));
    }
    mean = reduce_add(total) / static_cast<float>(m * m);
    return TileKind::usable;
  }

  // Writes the tile, times factor, into lane `lane` of lines of m floats a lane.
  TP_INLINE void copy_to(float* const* lines, int lane, int m, float factor) const {
    if (m == P) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i)
        for (int p = 0; p < kPieces; ++p)
          store(lines[i] + lane * P + p * Row<P>::kPieceLanes,
                load<Floats>(x + i * P + p * Row<P>::kPieceLanes) * factor);
    } else {
      for (int i = 0; i < m; ++i)
        for (int j = 0; j < m; ++j) lines[i][lane * m + j] = x[i * P + j] * factor;
    }
  }
  void clear() {
    for (int e = 0; e < P * P; ++e) x[e] = 0;
  }

 private:
  TileKind zero() {
    exponent = 0;
    mean = 1;
    clear();
    return TileKind::zero;
  }

  // Scaled before it is rounded to float, so that no range is lost. Rounding is monotone, with an
  // error of 2^-25 of each score.
  TileKind fetch_double(const Scores& scores, std::int64_t b, std::int64_t row, std::int64_t col, int m,
                        SignRule sign) {
    const double* data = static_cast<const double*>(scores.data);
    std::int64_t largest = 0;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < m; ++j) {
        std::int64_t bits;
        __builtin_memcpy(&bits, data + scores.offset(b, row + i, col + j), sizeof bits);
        bits &= 0x7fffffffffffffff;
        largest = bits > largest ? bits : largest;
      }
    if (largest == 0) return zero();
    const int top = static_cast<int>(largest >> 52) - 1023;
    if (top < -900 || top > 900) return TileKind::special;
    exponent = top - 1;
    const double factor = double_power_of_two(-exponent);
    double sum = 0;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < m; ++j) {
        double value = data[scores.offset(b, row + i, col + j)] * factor;
        const double magnitude = value < 0 ? -value : value;
        sum += magnitude;
        if (sign.keep == 0x7fffffffu) value = magnitude;
        x[i * P + j] = static_cast<float>(sign.flip ? -value : value);
      }
    mean = static_cast<float>(sum / (m * m));
    return TileKind::usable;
  }
};

// Bits to bytes 0 or 1: 64 bits, 64 bytes.
TP_INLINE void expand_bits(std::uint64_t bits, std::uint8_t* out, bool stream) {
#if TP_BYTES == 64
  const __m512i bytes = _mm512_maskz_set1_epi8(bits, 1);
  if (stream)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(out), bytes);
  else
    _mm512_storeu_si512(out, bytes);
#elif defined(__AVX2__)
  const __m256i pick = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2,
                                        3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i select = _mm256_set1_epi64x(static_cast<std::int64_t>(0x8040201008040201ull));
  for (int half = 0; half < 2; ++half) {
    const __m256i word = _mm256_set1_epi32(static_cast<std::int32_t>(bits >> 32 * half));
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(word, pick), select);
    const __m256i bytes = _mm256_and_si256(_mm256_cmpeq_epi8(spread, select), _mm256_set1_epi8(1));
    if (stream)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(out + 32 * half), bytes);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), bytes);
  }
#else
  (void)stream;
  for (int k = 0; k < 8; ++k) {
    // Byte j keeps bit j alone; adding 0x7f lifts any such bit to the top of its byte.
    const std::uint64_t spread = ((bits >> 8 * k & 0xff) * 0x0101010101010101ull) & 0x8040201008040201ull;
    const std::uint64_t bytes = ((spread + 0x7f7f7f7f7f7f7f7full) | spread) >> 7 & 0x0101010101010101ull;
    __builtin_memcpy(out + 8 * k, &bytes, 8);
  }
#endif
}

// Row `bits` of a line of tiles (bits consecutive for the tile columns) as `count` bytes at out.
inline void write_bits(const std::uint64_t* bits, int count, std::uint8_t* out, bool stream) {
  const bool aligned = stream && (reinterpret_cast<std::uintptr_t>(out) & 63) == 0;
  int done = 0;
  for (; done + 64 <= count; done += 64) expand_bits(bits[done / 64], out + done, aligned);
  if (done < count) {
    std::uint8_t rest[64];
    expand_bits(bits[done / 64], rest, false);
    for (int k = 0; done + k < count; ++k) out[done + k] = rest[k];
  }
}

}  // namespace transposable::TP_ISA
