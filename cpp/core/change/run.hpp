// What a new mask changes, and the kernel that counts it on elements that lie one after the other.
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

struct MaskChange {
  std::int64_t flips = 0;  // entries that differ
  double kept = 0;         // sum of |weight| where the new mask is set
  double total = 0;        // sum of |weight|
};

// Adds `count` elements to sums. Lanes count flips in 32 bits.
using ChangeRun = void (*)(const void* weight, DType dtype, const std::uint8_t* mask,
                           const std::uint8_t* found, int count, MaskChange& sums);

}  // namespace transposable
