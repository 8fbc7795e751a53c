// The compressed form of a matrix with a mask: which of R rows a column keeps, then its weights.
//
// Rows are taken in blocks of R, columns in blocks of C; column blocks are outermost. The index of a
// block is a sequence of runs {type, count, column ...} and the terminator {0, 0}: bit r of the type
// says that row r of the block keeps the columns of the run, which are relative to the block's first.
// Types ascend, so do the columns of a run; a column that keeps nothing is left out. The values are
// those of the runs in their order, column by column, each by ascending row. Blocks of 4 rows have runs
// of several types together, and columns that are bytes if there are at most 256: see run.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include "../scores.hpp"

namespace transposable {

struct StreamShape {
  std::int64_t rows, cols;
  int row_block, col_block;

  std::int64_t row_blocks() const { return (rows + row_block - 1) / row_block; }
  std::int64_t col_blocks() const { return (cols + col_block - 1) / col_block; }
  std::int64_t blocks() const { return row_blocks() * col_blocks(); }
};

// Where a block begins in the index and among the values; both arrays have one entry more.
struct StreamIndex {
  std::vector<std::uint16_t> index;
  std::vector<std::int64_t> index_starts, value_starts;
};

struct StreamView {
  StreamShape shape;
  const std::uint16_t* index;
  const std::int64_t *index_starts, *value_starts;

  const std::uint16_t* block(std::int64_t b) const { return index + index_starts[b]; }
};

struct MatrixView {
  const void* data;
  DType dtype;
  std::int64_t row_stride, col_stride;
};

// Throws std::invalid_argument if a block size is out of range.
StreamIndex build_stream(const std::uint8_t* mask, std::int64_t row_stride, std::int64_t col_stride,
                         const StreamShape& shape, int threads);

// values[p] = weight at p; values are of f32 or bf16 (rounded to nearest even).
void fill_stream(const StreamView& stream, const MatrixView& weight, void* values, DType dtype,
                 int threads);

// out at p = values[p]; the other entries of out are left as they are.
void scatter_stream(const StreamView& stream, const void* values, DType dtype, float* out,
                    std::int64_t row_stride, std::int64_t col_stride, int threads);

}  // namespace transposable
