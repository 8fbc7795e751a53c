// Typed access to scores of any dtype, so that inner loops are compiled for each of them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>

#include "../scores.hpp"

namespace transposable {

struct HalfBits {
  std::uint16_t bits;
};
struct BrainBits {
  std::uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(HalfBits x) { return f16_to_float(x.bits); }
inline float widen(BrainBits x) { return bf16_to_float(x.bits); }

// Calls f(pointer) with the data as float, double, HalfBits or BrainBits.
template <class F>
decltype(auto) with_elements(const Scores& scores, F&& f) {
  switch (scores.dtype) {
    case DType::f64: return std::forward<F>(f)(static_cast<const double*>(scores.data));
    case DType::f16: return std::forward<F>(f)(static_cast<const HalfBits*>(scores.data));
    case DType::bf16: return std::forward<F>(f)(static_cast<const BrainBits*>(scores.data));
    case DType::f32: break;
  }
  return std::forward<F>(f)(static_cast<const float*>(scores.data));
}

// Signed integers in the order of the floats; both zeros are 0.
inline std::int32_t ordered(float x) {
  const auto bits = std::bit_cast<std::int32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

}  // namespace transposable
