// The weight gradient where the mask keeps a weight, over all samples.
#include <algorithm>
#include <vector>

#include "../parallel.hpp"
#include "matmul.hpp"
#include "workspace.hpp"

namespace transposable {
namespace {

// Samples at hand for the weight gradient: what should stay in the L2 cache.
constexpr std::int64_t kSlab = 512 << 10;  // bytes

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

void stream_weight_gradient(const StreamView& stream, const SampleSource& x,
                            const SampleSource& dy, std::int64_t samples, float* out,
                            int threads) {
  const SparseKernels& kernels = active_sparse_kernels();
  const StreamShape& shape = stream.shape;
  const std::int64_t entries = shape.rows * shape.cols;
  if (samples == 0 || entries == 0) {
    std::fill_n(out, entries, 0.0f);
    return;
  }
  // Where few rows share a column, sums over more samples pay, with fewer columns at hand.
  const std::int64_t kept = stream.value_starts[shape.blocks()];
  const std::int64_t most = kept < 3 * ceil_div(shape.rows, shape.row_block) * shape.cols ? 1024 : 512;
  const std::int64_t chunk = std::min(most, ceil_div(samples, kernels.lanes) * kernels.lanes);
  const std::int64_t at_hand = std::min<std::int64_t>(512, kSlab / (chunk * sizeof(float)));
  // A distance that is no power of two: else all channels fall on the same few lines of the cache.
  const std::int64_t stride = chunk + kernels.lanes;
  const Floats columns = floats(shape.cols * stride);
  const Floats rows = floats(shape.row_blocks() * shape.row_block * stride);
  std::vector<std::uint16_t> taken(stream.index_starts[shape.blocks()]);
  for (std::int64_t first = 0; first < samples; first += chunk) {
    const std::int64_t valid = std::min(chunk, samples - first);
    const std::int64_t width = ceil_div(valid, kernels.lanes) * kernels.lanes;
    pack_channels(x, first, valid, shape.cols, columns.get(), width, stride, threads);
    pack_channels(dy, first, valid, shape.rows, rows.get(), width, stride, threads);
    std::fill(taken.begin(), taken.end(), std::uint16_t{0});
    const std::int64_t share = ceil_div(shape.row_blocks(), 2 * threads);
    parallel_chunks(shape.row_blocks(), share, threads, [&] {
      return [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t block = 0; block < shape.col_blocks(); ++block) {
          const std::int64_t left = block * shape.col_block;
          const std::int64_t wide = std::min<std::int64_t>(shape.col_block, shape.cols - left);
          for (std::int64_t column = 0; column < wide; column += at_hand) {
            const std::int64_t beyond = std::min(column + at_hand, wide);
            for (std::int64_t row = begin; row < end; ++row) {
              const std::int64_t b = block * shape.row_blocks() + row, top = row * shape.row_block;
              float* const corner = out + top * shape.cols + left;
              const std::int64_t height = std::min<std::int64_t>(shape.row_block, shape.rows - top);
              if (first == 0)
                for (std::int64_t r = 0; r < height; ++r)
                  std::fill_n(corner + r * shape.cols + column, beyond - column, 0.0f);
              // What the next block writes to, on its way while this one computes.
              for (std::int64_t r = height; r < std::min(2 * height, shape.rows - top); ++r)
                for (std::int64_t c = column; c < beyond; c += 16)
                  __builtin_prefetch(corner + r * shape.cols + c, 1);
              kernels.gradient({stream.block(b), taken.data() + stream.index_starts[b],
                                static_cast<int>(beyond), columns.get() + left * stride,
                                rows.get() + top * stride, stride, static_cast<int>(width), corner,
                                shape.cols, first > 0});
            }
          }
        }
      };
    });
  }
}

}  // namespace transposable
