// The weight gradient where the mask keeps a weight, over all samples.
#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "../parallel.hpp"
#include "matmul.hpp"
#include "run.hpp"
#include "workspace.hpp"

namespace transposable {
namespace {

// Samples at hand: what should stay in the L2 cache.
constexpr std::int64_t kSlab = 512 << 10;  // bytes

// The columns of each group of rows by type: those of the first `slab` columns, then of the next ones.
struct Order {
  std::vector<std::uint8_t> types;    // [groups][cols]
  std::vector<std::uint16_t> places;  // in the slab

  Order(const StreamView& stream, std::int64_t slab, int threads) {
    const StreamShape& shape = stream.shape;
    const std::int64_t groups = ceil_div(shape.rows, kGradientRows);
    types.resize(groups * shape.cols);
    places.resize(groups * shape.cols);
    parallel_chunks(groups, 16, threads, [&] {
      return [&, kept = std::vector<std::uint8_t>(shape.cols)](std::int64_t begin,
                                                                std::int64_t end) mutable {
        for (std::int64_t group = begin; group < end; ++group) {
          std::fill(kept.begin(), kept.end(), std::uint8_t{0});
          read_group(stream, group, kept.data());
          for (std::int64_t left = 0; left < shape.cols; left += slab)
            sort(kept.data() + left, std::min(slab, shape.cols - left), group * shape.cols + left);
        }
      };
    });
  }

 private:
  static void read_group(const StreamView& stream, std::int64_t group, std::uint8_t* kept) {
    const StreamShape& shape = stream.shape;
    const std::int64_t above = kGradientRows / shape.row_block;  // blocks of the stream in a group
    for (std::int64_t i = 0; i < above && group * above + i < shape.row_blocks(); ++i)
      for (std::int64_t block = 0; block < shape.col_blocks(); ++block)
        for_each_type(shape.row_block, stream.block(block * shape.row_blocks() + group * above + i),
                      [&, line = kept + block * shape.col_block](
                          unsigned type, const std::uint16_t* columns, int count) {
                        for (int c = 0; c < count; ++c)
                          line[columns[c]] |= static_cast<std::uint8_t>(type << i * shape.row_block);
                      });
  }

  void sort(const std::uint8_t* kept, std::int64_t columns, std::int64_t at) {
    std::array<std::uint16_t, 257> next{};
    for (std::int64_t c = 0; c < columns; ++c) ++next[kept[c] + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (std::int64_t c = 0; c < columns; ++c) {
      const std::int64_t place = at + next[kept[c]]++;
      types[place] = kept[c];
      places[place] = static_cast<std::uint16_t>(c);
    }
  }
};

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
  const std::int64_t most = kept < 3 * ceil_div(shape.rows, kGradientRows) * shape.cols ? 1024 : 512;
  const std::int64_t chunk = std::min(most, ceil_div(samples, kernels.lanes) * kernels.lanes);
  const std::int64_t slab = std::min<std::int64_t>(512, kSlab / (chunk * sizeof(float)));
  // A distance that is no power of two: else all channels fall on the same few lines of the cache.
  const std::int64_t stride = chunk + kernels.lanes;
  const std::int64_t groups = ceil_div(shape.rows, kGradientRows);
  const Order order(stream, slab, threads);
  const Floats columns = floats(shape.cols * stride);
  const Floats rows = floats(groups * kGradientRows * stride);
  for (std::int64_t first = 0; first < samples; first += chunk) {
    const std::int64_t valid = std::min(chunk, samples - first);
    const std::int64_t width = ceil_div(valid, kernels.lanes) * kernels.lanes;
    pack_channels(x, first, valid, shape.cols, columns.get(), width, stride, threads);
    pack_channels(dy, first, valid, shape.rows, rows.get(), width, stride, threads);
    parallel_chunks(groups, ceil_div(groups, 2 * threads), threads, [&] {
      return [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t left = 0; left < shape.cols; left += slab) {
          const std::int64_t wide = std::min(slab, shape.cols - left);
          for (std::int64_t group = begin; group < end; ++group) {
            const std::int64_t top = group * kGradientRows, at = group * shape.cols + left;
            const std::int64_t height = std::min<std::int64_t>(kGradientRows, shape.rows - top);
            float* const corner = out + top * shape.cols + left;
            if (first == 0)
              for (std::int64_t r = 0; r < height; ++r)
                std::fill_n(corner + r * shape.cols, wide, 0.0f);
            // What the next group writes to, on its way while this one computes.
            for (std::int64_t r = height; r < std::min(2 * height, shape.rows - top); ++r)
              for (std::int64_t c = 0; c < wide; c += 16)
                __builtin_prefetch(corner + r * shape.cols + c, 1);
            kernels.gradient({order.places.data() + at, order.types.data() + at,
                              static_cast<int>(wide), columns.get() + left * stride,
                              rows.get() + top * stride, stride, static_cast<int>(width), corner,
                              shape.cols, first > 0});
          }
        }
      };
    });
  }
}

}  // namespace transposable
