#include "stream.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <stdexcept>
#include <string>

#include "../parallel.hpp"
#include "bfloat16.hpp"
#include "run.hpp"

namespace transposable {
namespace {

constexpr int kTypes = 256;
constexpr std::int64_t kMostColumns = 65535;  // of a run: its count is a 16-bit number
constexpr std::int64_t kFewestTogether = 4;   // fewer do not pay for a run of their own

// The columns of a block by type, and the runs that they make.
class BlockTypes {
 public:
  BlockTypes(const std::uint8_t* mask, std::int64_t row_stride, std::int64_t col_stride,
             const StreamShape& shape)
      : mask_(mask), row_stride_(row_stride), col_stride_(col_stride), shape_(shape),
        types_(static_cast<std::size_t>(shape.col_block)), sorted_(types_.size()) {}

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
    counts_[0] = 0;
    if (shape_.row_block == 4) take_together();
  }

  std::int64_t index_size() const {
    const bool bytes = has_byte_columns(shape_);
    std::int64_t size = 2;
    for (int type = 1; type < kTypes; ++type) {
      const std::int64_t runs = (alone(type) + kMostColumns - 1) / kMostColumns;
      size += entries_of(alone(type), bytes) + 2 * runs;
    }
    for (unsigned i = 0; i < together_.size(); ++i)
      if (together_[i])
        size += 2 + types_of_run(4, kPairs + 1 + i).columns * entries_of(together_[i], bytes);
    return size;
  }
  std::int64_t value_count() const {
    std::int64_t count = 0;
    for (int type = 1; type < kTypes; ++type) count += counts_[type] * std::popcount(unsigned(type));
    return count;
  }

  void write(std::uint16_t* index) {
    std::array<std::int64_t, kTypes> place{};
    for (int type = 2; type < kTypes; ++type) place[type] = place[type - 1] + counts_[type - 1];
    std::array<const std::uint16_t*, kTypes> next;  // columns of a type that are not written yet
    for (int type = 1; type < kTypes; ++type) next[type] = sorted_.data() + place[type];
    for (std::int64_t c = 0; c < width_; ++c)
      if (types_[c]) sorted_[place[types_[c]]++] = static_cast<std::uint16_t>(c);

    const bool bytes = has_byte_columns(shape_);

    const auto write_run = [&](unsigned type, const RunTypes& types, std::int64_t count) {
      *index++ = static_cast<std::uint16_t>(type);
      *index++ = static_cast<std::uint16_t>(count);
      for (int i = 0; i < types.columns; ++i) {
        const std::uint16_t*& columns = next[types.rows[i]];
        if (bytes) {
          if (count % 2) index[count / 2] = 0;
          auto* to = reinterpret_cast<std::uint8_t*>(index);
          for (std::int64_t c = 0; c < count; ++c) to[c] = static_cast<std::uint8_t>(columns[c]);
        } else {
          std::copy_n(columns, count, index);
        }
        columns += count;
        index += entries_of(count, bytes);
      }
    };
    for (unsigned type = 1; type < kTypes; ++type)
      for (std::int64_t left = alone(type); left > 0; left -= kMostColumns)
        write_run(type, {1, {type}}, std::min(left, kMostColumns));
    for (unsigned i = 0; i < together_.size(); ++i)
      if (together_[i]) write_run(kPairs + 1 + i, types_of_run(4, kPairs + 1 + i), together_[i]);
    index[0] = index[1] = 0;
  }

 private:
  // Pairs first, then fours of what is left.
  void take_together() {
    taken_.fill(0);
    for (unsigned i = 0; i < together_.size(); ++i) {
      const RunTypes types = types_of_run(4, kPairs + 1 + i);
      std::int64_t count = width_;
      for (int c = 0; c < types.columns; ++c) count = std::min(count, alone(types.rows[c]));
      together_[i] = count < kFewestTogether ? 0 : count;
      for (int c = 0; c < types.columns; ++c) taken_[types.rows[c]] += together_[i];
    }
  }
  std::int64_t alone(unsigned type) const { return counts_[type] - (type < 16 ? taken_[type] : 0); }

  const std::uint8_t* mask_;
  std::int64_t row_stride_, col_stride_;
  const StreamShape& shape_;
  std::vector<std::uint8_t> types_;
  std::vector<std::uint16_t> sorted_;
  std::array<std::int64_t, kTypes> counts_{};
  std::array<std::int64_t, kFours - kPairs> together_{};  // groups of a type that has several columns
  std::array<std::int64_t, 16> taken_{};                  // columns that are in such groups
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

// The rows of a type, from top to bottom.
struct TypeRows {
  int count = 0, rows[8];

  explicit TypeRows(unsigned type) {
    for (; type; type &= type - 1) rows[count++] = std::countr_zero(type);
  }
};

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
    for_each_type(stream.shape, stream.block(b),
                  [&](unsigned type, const auto* columns, int count) {
                    const TypeRows kept(type);
                    const T* line[8];
                    for (int j = 0; j < kept.count; ++j) line[j] = from + kept.rows[j] * weight.row_stride;
                    for (int i = 0; i < count; ++i)
                      for (int j = 0; j < kept.count; ++j)
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
    for_each_type(stream.shape, stream.block(b),
                  [&](unsigned type, const auto* columns, int count) {
                    const TypeRows kept(type);
                    for (int i = 0; i < count; ++i)
                      for (int j = 0; j < kept.count; ++j)
                        to[kept.rows[j] * row_stride + columns[i] * col_stride] = element(from++);
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
  every_block([&](std::int64_t b, BlockTypes& types) {
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
