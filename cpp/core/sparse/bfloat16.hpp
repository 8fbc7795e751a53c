// Brain floats in memory; sums are in float.
#pragma once

#include <bit>
#include <cstdint>

namespace transposable {

struct BFloat16 {
  std::uint16_t bits;
};

// Rounded to nearest even. A NaN stays one.
__attribute__((always_inline)) inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace transposable
