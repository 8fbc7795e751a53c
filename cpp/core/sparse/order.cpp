#include "order.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "../parallel.hpp"
#include "kernels.hpp"
#include "run.hpp"

namespace transposable {
namespace {

// Which of the group's rows keep each column.
void read_group(const StreamView& stream, std::int64_t group, int rows,
                std::vector<std::uint8_t>& kept) {
  const StreamShape& shape = stream.shape;
  const std::int64_t height = rows / shape.row_block;
  std::fill(kept.begin(), kept.end(), std::uint8_t{0});
  for (std::int64_t i = 0; i < height && group * height + i < shape.row_blocks(); ++i)
    for (std::int64_t block = 0; block < shape.col_blocks(); ++block) {
      std::uint8_t* const line = kept.data() + block * shape.col_block;
      for_each_type(shape, stream.block(block * shape.row_blocks() + group * height + i),
                    [&](unsigned type, const auto* columns, int count) {
                      for (int c = 0; c < count; ++c)
                        line[columns[c]] |= static_cast<std::uint8_t>(type << i * shape.row_block);
                    });
    }
}

void sort(const std::uint8_t* kept, std::int64_t columns, std::uint32_t* to) {
  std::array<std::int32_t, 257> next{};
  for (std::int64_t c = 0; c < columns; ++c) ++next[kept[c] + 1];
  next[1] = 0;  // columns that no row keeps are left out
  std::partial_sum(next.begin() + 1, next.end(), next.begin() + 1);
  for (std::int64_t c = 0; c < columns; ++c)
    if (kept[c]) to[next[kept[c]]++] = static_cast<std::uint32_t>(kept[c] << 16 | c);
}

GradientOrder ordered(const StreamView& stream, int rows, int threads) {
  const StreamShape& shape = stream.shape;
  GradientOrder order;
  order.groups = (shape.rows + rows - 1) / rows;
  // Where few rows share a column, sums over more samples pay, with fewer columns at hand.
  const std::int64_t blocks = (shape.rows + kGradientRows - 1) / kGradientRows;
  const bool scarce = stream.value_starts[shape.blocks()] < 3 * blocks * shape.cols;
  const std::int64_t most = scarce ? kNarrowSlab : kWideSlab;
  order.slabs = (shape.cols + most - 1) / most;
  order.slab = std::min(most, shape.cols);
  order.columns.assign(order.groups * order.slabs * order.slab, 0);
  parallel_chunks(order.groups, 16, threads, [&] {
    return [&, line = std::vector<std::uint8_t>(shape.cols)](std::int64_t begin,
                                                              std::int64_t end) mutable {
      for (std::int64_t group = begin; group < end; ++group) {
        read_group(stream, group, rows, line);
        for (std::int64_t s = 0; s < order.slabs; ++s)
          sort(line.data() + s * order.slab, std::min(order.slab, shape.cols - s * order.slab),
               order.columns.data() + (group * order.slabs + s) * order.slab);
      }
    };
  });
  return order;
}

// Whether less than kFewestAlike columns of a slab are of one type, on average.
bool is_scattered(const GradientOrder& order) {
  std::int64_t columns = 0, types = 0;
  for (std::int64_t part = 0; part < order.groups * order.slabs; ++part) {
    std::uint32_t before = 0;
    for (std::int64_t i = part * order.slab; i < (part + 1) * order.slab && order.columns[i]; ++i) {
      const std::uint32_t type = order.columns[i] >> 16;
      types += type != before;
      before = type;
      ++columns;
    }
  }
  return columns < kFewestAlike * types;
}

}  // namespace

GradientOrder gradient_order(const StreamView& stream, int threads) {
  GradientOrder order = ordered(stream, kGradientRows, threads);
  if (stream.shape.row_block <= kFewGradientRows && stream.shape.rows > kFewGradientRows &&
      is_scattered(order))
    return ordered(stream, kFewGradientRows, threads);
  return order;
}

}  // namespace transposable
