// A read-only view of a batch of score matrices of any dtype and strides.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace transposable {

enum class DType { f32, f64, f16, bf16 };

inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline float f16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t rest = bits & 0x7fffu;
  if (rest >= 0x7c00u)  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Subnormals come out right as well: the product with 2^112 renormalises them.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

struct Scores {
  const void* data;
  DType dtype;
  std::int64_t batch, rows, cols;
  std::int64_t batch_stride, row_stride, col_stride;  // in elements
  bool magnitude;                                     // maximise |x| rather than x

  // Inlined by force: this header is compiled for several instruction sets.
  __attribute__((always_inline)) std::int64_t offset(std::int64_t b, std::int64_t r, std::int64_t c) const {
    return b * batch_stride + r * row_stride + c * col_stride;
  }

  // The element as stored, exactly.
  double raw(std::int64_t b, std::int64_t r, std::int64_t c) const {
    const std::int64_t at = offset(b, r, c);
    switch (dtype) {
      case DType::f32: return static_cast<const float*>(data)[at];
      case DType::f64: return static_cast<const double*>(data)[at];
      case DType::f16: return f16_to_float(static_cast<const std::uint16_t*>(data)[at]);
      case DType::bf16: return bf16_to_float(static_cast<const std::uint16_t*>(data)[at]);
    }
    return 0;
  }

  double at(std::int64_t b, std::int64_t r, std::int64_t c) const {
    const double x = raw(b, r, c);
    return magnitude ? std::fabs(x) : x;
  }
};

}  // namespace transposable
