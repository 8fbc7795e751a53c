// What a new mask changes against the old one, and how much it keeps, in one pass.
#pragma once

#include <cstdint>
#include <vector>

#include "run.hpp"

namespace transposable {

// One dimension of the three tensors; strides in elements.
struct ChangeAxis {
  std::int64_t size;
  std::int64_t weight, mask, found;
};

// All three of one shape, each with strides of its own. Masks hold 0 or 1.
struct ChangeJob {
  const void* weight;
  DType dtype;
  const std::uint8_t *mask, *found;
  std::vector<ChangeAxis> axes;
};

// Sums are in double precision and do not depend on the number of threads.
MaskChange compare_masks(const ChangeJob& job, int threads);

}  // namespace transposable
