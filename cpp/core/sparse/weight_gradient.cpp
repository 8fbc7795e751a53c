// The weight gradient where the mask keeps a weight, over all samples.
#include <algorithm>

#include "../parallel.hpp"
#include "matmul.hpp"
#include "workspace.hpp"

namespace transposable {
namespace {

// Channels of some samples one after the other, `stride` apart, filled up with zeros to `width`.
void pack_channels(const SampleSource& x, std::int64_t sample, std::int64_t samples,
                   std::int64_t channels, float* to, std::int64_t width, std::int64_t stride,
                   int threads) {
  constexpr std::int64_t kChannels = 64;
  parallel_chunks(ceil_div(channels, kChannels), 1, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) {
        const std::int64_t first = k * kChannels, last = std::min(channels, first + kChannels);
        x.pack(sample, samples, first, last, to + first * stride, width, stride);
      }
    };
  });
}

}  // namespace

void weight_gradient(const GradientColumns& order, std::int64_t rows, std::int64_t cols,
                     const SampleSource& x, const SampleSource& dy, std::int64_t samples, float* out,
                     int threads) {
  const SparseKernels& kernels = active_sparse_kernels();
  if (samples == 0 || rows * cols == 0) {
    std::fill_n(out, rows * cols, 0.0f);
    return;
  }
  const int height_of_group = rows_of_groups(order.groups, rows);
  const std::int64_t most = order.slab <= kNarrowSlab ? 1024 : 512;
  const std::int64_t chunk = std::min(most, ceil_div(samples, kernels.lanes) * kernels.lanes);
  // A distance that is no power of two: else all channels fall on the same few lines of the cache.
  const std::int64_t stride = chunk + kernels.lanes;
  const Floats packed_x = floats(cols * stride), packed_dy = floats(order.groups * height_of_group * stride);
  for (std::int64_t first = 0; first < samples; first += chunk) {
    const std::int64_t valid = std::min(chunk, samples - first);
    const std::int64_t width = ceil_div(valid, kernels.lanes) * kernels.lanes;
    pack_channels(x, first, valid, cols, packed_x.get(), width, stride, threads);
    pack_channels(dy, first, valid, rows, packed_dy.get(), width, stride, threads);
    parallel_chunks(order.groups, ceil_div(order.groups, 2 * threads), threads, [&] {
      return [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t s = 0; s < order.slabs; ++s) {
          const std::int64_t left = s * order.slab, wide = std::min(order.slab, cols - left);
          for (std::int64_t group = begin; group < end; ++group) {
            const std::int64_t top = group * height_of_group;
            const std::int64_t height = std::min<std::int64_t>(height_of_group, rows - top);
            float* const corner = out + top * cols + left;
            if (first == 0)
              for (std::int64_t r = 0; r < height; ++r) std::fill_n(corner + r * cols, wide, 0.0f);
            // What the next group writes to, on its way while this one computes.
            for (std::int64_t r = height; r < std::min(2 * height, rows - top); ++r)
              for (std::int64_t c = 0; c < wide; c += 16)
                __builtin_prefetch(corner + r * cols + c, 1);
            kernels.gradient({order.columns + (group * order.slabs + s) * order.slab,
                              static_cast<int>(wide), packed_x.get() + left * stride,
                              packed_dy.get() + top * stride, stride, static_cast<int>(width),
                              corner, cols, first > 0});
          }
        }
      };
    });
  }
}

}  // namespace transposable
