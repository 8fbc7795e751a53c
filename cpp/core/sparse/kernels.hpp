// What the compressed matmul needs of an instruction set.
#pragma once

#include <cstdint>

#include "../scores.hpp"

namespace transposable {

// A panel holds a few samples side by side: one channel after the other, each as `width` floats,
// a multiple of the lanes of a vector.

// Samples as rows of a matrix in memory.
struct SampleRows {
  const void* data;
  DType dtype;  // f32 or bf16
  std::int64_t stride;
};
struct OutputRows {
  void* data;
  DType dtype;
  std::int64_t stride;
};

// Some lanes of one vector of a panel, a bit for each, whose samples lie evenly in memory; the offset, in
// elements from where a channel begins, is that of lane 0, which need not be one of them.
struct LanePixels {
  std::int64_t offset;
  std::uint32_t lanes;
  std::int32_t vector;
};
// Samples of a panel, from `place` on, that lie side by side.
struct PixelPiece {
  std::int64_t place, count, offset;
};
// Images whose channels lie apart.
struct PixelPlanes {
  const void* data;
  DType dtype;
  std::int64_t channel_stride;
  std::int64_t step;  // from the pixel of one lane to that of the next
};
struct OutputPlanes {
  void* data;
  DType dtype;
  std::int64_t channel_stride;
};

// How far a product reads beyond the index of a block.
inline constexpr int kColumnsAhead = 12;

// Blocks of a stream, one above the other, times one panel.
struct BlockProduct {
  std::int64_t blocks;         // at least one
  const std::uint16_t* index;  // kColumnsAhead entries more than those of the blocks can be read
  bool byte_columns;           // see run.hpp
  const void* values;
  const float* x;     // panel of the blocks' columns
  float* y;           // panel of the blocks' rows; all row_block of each are written
  const float* next;  // what the next call may read as x, on its way meanwhile
  const float* bias;  // what y starts from, a number for each row; null: from what is in y
};

// Rows of a matrix that the weight gradient takes at a time, and columns whose samples stay in the L2
// cache meanwhile.
inline constexpr int kGradientRows = 8;
inline constexpr std::int64_t kNarrowSlab = 128, kWideSlab = 256;

// Sums over samples: gradient[r][c] (+)= sum_s dy[r][s] x[c][s] where the mask keeps (r, c).
struct RowsGradient {
  const std::uint32_t* columns;  // of a slab, see order.hpp
  int most;                      // of them; fewer if a 0 comes before
  const float* x;   // [column][stride]
  const float* dy;  // [row][stride]
  std::int64_t stride;
  int samples;  // a multiple of the lanes
  float* gradient;
  std::int64_t gradient_stride;
  bool add;  // to what is in gradient, instead of writing it
};

struct SparseKernels {
  const char* name;
  int lanes;
  // Most vectors of a panel for blocks of 4 and of 8 rows.
  int vectors4, vectors8;
  void (*multiply)(int row_block, int vectors, DType values, const BlockProduct& block);
  // Rows [0, samples) x columns [first, last) of x into a panel, whose channels lie `stride` apart;
  // from `samples` up to `width`, a multiple of the lanes, it is zero.
  void (*pack)(const SampleRows& x, std::int64_t samples, std::int64_t first, std::int64_t last,
               float* panel, std::int64_t width, std::int64_t stride);
  // Channels [first, last) of a panel into the columns of y.
  void (*unpack)(const float* panel, std::int64_t width, std::int64_t samples, std::int64_t first,
                 std::int64_t last, const OutputRows& y);
  // As pack, from a pointer for each of `width` rows.
  void (*pack_gathered)(const void* const* rows, DType dtype, std::int64_t first, std::int64_t last,
                        float* panel, std::int64_t width, std::int64_t stride);
  // Channels [0, channels) into a panel, by ascending vectors; zero in lanes that none of them has.
  void (*pack_pixels)(const PixelPlanes& x, const LanePixels* pixels, std::int64_t count,
                      std::int64_t channels, float* panel, std::int64_t width, std::int64_t stride);
  // Channels [0, channels) of a panel to pixels side by side.
  void (*unpack_pixels)(const float* panel, std::int64_t width, const PixelPiece* pieces,
                        std::int64_t count, std::int64_t channels, const OutputPlanes& y);
  void (*gradient)(const RowsGradient& rows);
  // Does so many rounds of independent multiply-adds; returns how many operations they were.
  double (*multiply_adds)(long rounds, float* sums);
};

const SparseKernels& active_sparse_kernels();

}  // namespace transposable
