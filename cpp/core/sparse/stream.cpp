#include "stream.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <string>

#include "../parallel.hpp"
#include "bfloat16.hpp"

namespace transposable {
namespace {

constexpr int kTypes = 256;
constexpr std::int64_t kMostColumns = 65535;  // of a run: its count is a 16-bit number

// The type of each column of a block.
class BlockTypes {
 public:
  BlockTypes(const std::uint8_t* mask, std::int64_t row_stride, std::int64_t col_stride,
             const StreamShape& shape)
      : mask_(mask), row_stride_(row_stride), col_stride_(col_stride), shape_(shape),
        types_(static_cast<std::size_t>(shape.col_block)) {}

  void read(std::int64_t row_block, std::int64_t col_block) {
    const std::int64_t top = row_block * shape_.row_block, left = col_block * shape_.col_block;
    const int rows = static_cast<int>(std::min<std::int64_t>(shape_.row_block, shape_.rows - top));
    width_ = std::min<std::int64_t>(shape_.col_block, shape_.cols - left);
    const std::uint8_t* from = mask_ + top * row_stride_ + left * col_stride_;
    std::fill_n(types_.begin(), width_, std::uint8_t{0});
    if (col_stride_ == 1) {
      for (int r = 0; r < rows; ++r, from += row_stride_)
        for (std::int64_t c = 0; c < width_; ++c)
          types_[c] |= static_cast<std::uint8_t>((from[c] != 0) << r);
    } else {
      for (std::int64_t c = 0; c < width_; ++c, from += col_stride_)
        for (int r = 0; r < rows; ++r)
          types_[c] |= static_cast<std::uint8_t>((from[r * row_stride_] != 0) << r);
    }
    counts_.fill(0);
    for (std::int64_t c = 0; c < width_; ++c) ++counts_[types_[c]];
  }

  std::int64_t index_size() const {
    std::int64_t size = 2;
    for (int type = 1; type < kTypes; ++type)
      if (counts_[type]) size += counts_[type] + 2 * runs_of(counts_[type]);
    return size;
  }
  std::int64_t value_count() const {
    std::int64_t count = 0;
    for (int type = 1; type < kTypes; ++type) count += counts_[type] * std::popcount(unsigned(type));
    return count;
  }

  void write(std::uint16_t* index) const {
    std::array<std::uint16_t*, kTypes> next{};
    std::array<std::int64_t, kTypes> left = counts_;
    for (int type = 1; type < kTypes; ++type) {
      next[type] = index;
      index += counts_[type] ? counts_[type] + 2 * runs_of(counts_[type]) : 0;
    }
    index[0] = index[1] = 0;
    for (std::int64_t c = 0; c < width_; ++c) {
      const int type = types_[c];
      if (!type) continue;
      if ((counts_[type] - left[type]) % kMostColumns == 0) {
        *next[type]++ = static_cast<std::uint16_t>(type);
        *next[type]++ = static_cast<std::uint16_t>(std::min(left[type], kMostColumns));
      }
      *next[type]++ = static_cast<std::uint16_t>(c);
      --left[type];
    }
  }

 private:
  static std::int64_t runs_of(std::int64_t columns) {
    return (columns + kMostColumns - 1) / kMostColumns;
  }

  const std::uint8_t* mask_;
  std::int64_t row_stride_, col_stride_;
  const StreamShape& shape_;
  std::vector<std::uint8_t> types_;
  std::array<std::int64_t, kTypes> counts_{};
  std::int64_t width_ = 0;
};

float element(const float* at) { return *at; }
float element(const double* at) { return static_cast<float>(*at); }
struct Half {
  std::uint16_t bits;
};
float element(const Half* at) { return f16_to_float(at->bits); }
float element(const BFloat16* at) { return bf16_to_float(at->bits); }

void assign(float& to, float value) { to = value; }
void assign(BFloat16& to, float value) { to.bits = float_to_bf16(value); }

// Calls each(values, rows of the run [n], n, columns, count) for every run of a block; offsets are
// those of the block's first entry.
template <class Each>
void for_each_run(const std::uint16_t* index, const Each& each) {
  while (index[0]) {
    int rows[8], n = 0;
    for (unsigned type = index[0]; type; type &= type - 1) rows[n++] = std::countr_zero(type);
    const int count = index[1];
    each(rows, n, index + 2, count);
    index += 2 + count;
  }
}

template <class Each>
void for_each_block(const StreamView& stream, int threads, const Each& each) {
  const std::int64_t rows = stream.shape.row_blocks();
  const std::int64_t chunk = std::max<std::int64_t>(1, 65536 / std::max(1, stream.shape.col_block));
  parallel_chunks(stream.shape.blocks(), chunk, threads, [&] {
    return [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b)
        each(b, b % rows * stream.shape.row_block, b / rows * stream.shape.col_block);
    };
  });
}

template <class T, class V>
void fill(const StreamView& stream, const MatrixView& weight, V* values, int threads) {
  for_each_block(stream, threads, [&](std::int64_t b, std::int64_t top, std::int64_t left) {
    const T* from = static_cast<const T*>(weight.data) + top * weight.row_stride +
                    left * weight.col_stride;
    V* to = values + stream.value_starts[b];
    for_each_run(stream.block(b), [&](const int* rows, int n, const std::uint16_t* columns, int count) {
      const T* line[8];
      for (int j = 0; j < n; ++j) line[j] = from + rows[j] * weight.row_stride;
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < n; ++j)
          assign(*to++, element(line[j] + columns[i] * weight.col_stride));
    });
  });
}

template <class V>
void fill_from(const StreamView& stream, const MatrixView& weight, V* values, int threads) {
  switch (weight.dtype) {
    case DType::f32: return fill<float>(stream, weight, values, threads);
    case DType::f64: return fill<double>(stream, weight, values, threads);
    case DType::f16: return fill<Half>(stream, weight, values, threads);
    case DType::bf16: return fill<BFloat16>(stream, weight, values, threads);
  }
}

template <class V>
void scatter(const StreamView& stream, const V* values, float* out, std::int64_t row_stride,
             std::int64_t col_stride, int threads) {
  for_each_block(stream, threads, [&](std::int64_t b, std::int64_t top, std::int64_t left) {
    const V* from = values + stream.value_starts[b];
    float* to = out + top * row_stride + left * col_stride;
    for_each_run(stream.block(b), [&](const int* rows, int n, const std::uint16_t* columns, int count) {
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < n; ++j)
          to[rows[j] * row_stride + columns[i] * col_stride] = element(from++);
    });
  });
}

}  // namespace

StreamIndex build_stream(const std::uint8_t* mask, std::int64_t row_stride, std::int64_t col_stride,
                         const StreamShape& shape, int threads) {
  if (shape.row_block != 4 && shape.row_block != 8)
    throw std::invalid_argument("row_block: received " + std::to_string(shape.row_block) +
                                "; it is 4 or 8");
  if (shape.col_block < 1 || shape.col_block > 65536)
    throw std::invalid_argument("col_block: received " + std::to_string(shape.col_block) +
                                "; it is 1 to 65536");
  const std::int64_t rows = shape.row_blocks(), blocks = shape.blocks();
  StreamIndex found;
  found.index_starts.assign(blocks + 1, 0);
  found.value_starts.assign(blocks + 1, 0);
  const auto every_block = [&](const auto& each) {
    parallel_chunks(blocks, std::max<std::int64_t>(1, 65536 / shape.col_block), threads, [&] {
      return [&, types = BlockTypes(mask, row_stride, col_stride, shape)](
                 std::int64_t begin, std::int64_t end) mutable {
        for (std::int64_t b = begin; b < end; ++b) {
          types.read(b % rows, b / rows);
          each(b, types);
        }
      };
    });
  };
  every_block([&](std::int64_t b, const BlockTypes& types) {
    found.index_starts[b + 1] = types.index_size();
    found.value_starts[b + 1] = types.value_count();
  });
  for (std::int64_t b = 0; b < blocks; ++b) {
    found.index_starts[b + 1] += found.index_starts[b];
    found.value_starts[b + 1] += found.value_starts[b];
  }
  found.index.resize(found.index_starts[blocks]);
  every_block([&](std::int64_t b, const BlockTypes& types) {
    types.write(found.index.data() + found.index_starts[b]);
  });
  return found;
}

void fill_stream(const StreamView& stream, const MatrixView& weight, void* values, DType dtype,
                 int threads) {
  if (dtype == DType::bf16)
    fill_from(stream, weight, static_cast<BFloat16*>(values), threads);
  else
    fill_from(stream, weight, static_cast<float*>(values), threads);
}

void scatter_stream(const StreamView& stream, const void* values, DType dtype, float* out,
                    std::int64_t row_stride, std::int64_t col_stride, int threads) {
  if (dtype == DType::bf16)
    scatter(stream, static_cast<const BFloat16*>(values), out, row_stride, col_stride, threads);
  else
    scatter(stream, static_cast<const float*>(values), out, row_stride, col_stride, threads);
}

}  // namespace transposable
