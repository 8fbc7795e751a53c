// Python bindings of compressed matrices: the arrays of a stream come one by one.
#include "bind_sparse.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "convert.hpp"
#include "core/sparse/image.hpp"
#include "core/sparse/matmul.hpp"
#include "core/sparse/workspace.hpp"

namespace {

using transposable::DType;
using transposable::StreamShape;
using transposable::StreamView;

using BoolMatrix = nb::ndarray<const bool, nb::ndim<2>, nb::device::cpu>;
using Index = nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Starts = nb::ndarray<const std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Order = nb::ndarray<const std::uint32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableValues = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<nb::ro, nb::ndim<2>, nb::device::cpu>;
using WritableMatrix = nb::ndarray<nb::ndim<2>, nb::device::cpu>;
using FloatMatrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Image = nb::ndarray<nb::ro, nb::ndim<4>, nb::device::cpu>;
using WritableImage = nb::ndarray<nb::ndim<4>, nb::device::cpu>;
using Pair = std::pair<std::int64_t, std::int64_t>;  // down and across
using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* text) {
  if (!condition) throw std::invalid_argument(text);
}

DType storage_of(nb::dlpack::dtype dtype) {
  const DType found = dtype_of(dtype);
  require(found == DType::f32 || found == DType::bf16, "dtype must be float32 or bfloat16");
  return found;
}

// A stream whose arrays have the sizes that its starts promise. What is in the index is trusted.
StreamView stream_of(const Index& index, const Starts& starts, std::int64_t rows, std::int64_t cols,
                     int row_block, int col_block) {
  require(rows >= 0 && cols >= 0, "stream: rows and cols must not be negative");
  require((row_block == 4 || row_block == 8) && col_block >= 1 && col_block <= 65536,
          "stream: row_block must be 4 or 8, col_block 1 to 65536");
  const StreamShape shape{rows, cols, row_block, col_block};
  const std::size_t blocks = static_cast<std::size_t>(shape.blocks());
  require(starts.shape(0) == 2 && starts.shape(1) == blocks + 1,
          "starts: shape must be [2, blocks + 1]");
  const std::int64_t *first = starts.data(), *second = first + blocks + 1;
  require(first[blocks] == static_cast<std::int64_t>(index.shape(0)),
          "index: its length must be the last of the starts");
  return {shape, index.data(), first, second};
}

template <class Array>
void require_values(const Array& values, const StreamView& stream) {
  require(stream.value_starts[stream.shape.blocks()] == static_cast<std::int64_t>(values.shape(0)),
          "values: their number must be the last of the starts");
}

template <class Array>
void require_shape(const Array& array, std::int64_t rows, std::int64_t cols, const char* text) {
  require(static_cast<std::int64_t>(array.shape(0)) == rows &&
              static_cast<std::int64_t>(array.shape(1)) == cols,
          text);
}

void require_contiguous(const FloatMatrix& out) {
  const std::int64_t rows = static_cast<std::int64_t>(out.shape(0));
  const std::int64_t cols = static_cast<std::int64_t>(out.shape(1));
  require(rows * cols == 0 ||
              ((out.stride(1) == 1 || cols == 1) && (out.stride(0) == cols || rows == 1)),
          "out: must be contiguous");
}

// Rows of samples: the last dimension must be contiguous.
transposable::SampleRows samples_of(const Matrix& x) {
  require(x.stride(1) == 1 || x.shape(1) <= 1, "samples: the last dimension must be contiguous");
  return {x.data(), storage_of(x.dtype()), x.stride(0)};
}

template <class T>
nb::ndarray<nb::numpy, T> as_numpy(std::vector<T> data, std::initializer_list<std::size_t> shape) {
  auto owned = std::make_unique<std::vector<T>>(std::move(data));
  T* first = owned->data();
  nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(first, shape, owner);
}

nb::tuple sparse_index(const BoolMatrix& mask, int row_block, int col_block, int threads) {
  const StreamShape shape{static_cast<std::int64_t>(mask.shape(0)),
                          static_cast<std::int64_t>(mask.shape(1)), row_block, col_block};
  transposable::StreamIndex found;
  {
    nb::gil_scoped_release release;
    found = transposable::build_stream(reinterpret_cast<const std::uint8_t*>(mask.data()),
                                       mask.stride(0), mask.stride(1), shape, threads);
  }
  const std::size_t length = found.index.size(), blocks = found.index_starts.size();
  std::vector<std::int64_t> starts = std::move(found.index_starts);
  starts.insert(starts.end(), found.value_starts.begin(), found.value_starts.end());
  return nb::make_tuple(as_numpy(std::move(found.index), {length}),
                        as_numpy(std::move(starts), {2, blocks}));
}

void sparse_fill(const Index& index, const Starts& starts, std::int64_t rows, std::int64_t cols,
                 int row_block, int col_block, const Matrix& weight, const WritableValues& values,
                 int threads) {
  const StreamView stream = stream_of(index, starts, rows, cols, row_block, col_block);
  require_shape(weight, rows, cols, "weight: shape must be [rows, cols]");
  require_values(values, stream);
  const DType dtype = storage_of(values.dtype());
  const transposable::MatrixView view{weight.data(), dtype_of(weight.dtype()), weight.stride(0),
                                      weight.stride(1)};
  nb::gil_scoped_release release;
  transposable::fill_stream(stream, view, values.data(), dtype, threads);
}

void sparse_scatter(const Index& index, const Starts& starts, std::int64_t rows, std::int64_t cols,
                    int row_block, int col_block, const Values& values, const FloatMatrix& out,
                    int threads) {
  const StreamView stream = stream_of(index, starts, rows, cols, row_block, col_block);
  require_shape(out, rows, cols, "out: shape must be [rows, cols]");
  require_values(values, stream);
  const DType dtype = storage_of(values.dtype());
  nb::gil_scoped_release release;
  transposable::scatter_stream(stream, values.data(), dtype, out.data(), out.stride(0), out.stride(1),
                               threads);
}

void sparse_matmul(const Index& index, const Starts& starts, std::int64_t rows, std::int64_t cols,
                   int row_block, int col_block, const Values& values, const Matrix& x,
                   const std::optional<Bias>& bias, const WritableMatrix& out, int threads) {
  const StreamView stream = stream_of(index, starts, rows, cols, row_block, col_block);
  const std::int64_t samples = static_cast<std::int64_t>(x.shape(0));
  require_values(values, stream);
  require_shape(x, samples, cols, "x: shape must be [samples, cols]");
  require_shape(out, samples, rows, "out: shape must be [samples, rows]");
  require(!bias || static_cast<std::int64_t>(bias->shape(0)) == rows, "bias: shape must be [rows]");
  require(out.stride(1) == 1 || rows <= 1, "out: the last dimension must be contiguous");
  const transposable::RowSink y({out.data(), storage_of(out.dtype()), out.stride(0)});
  const DType dtype = storage_of(values.dtype());
  const transposable::RowSource from(samples_of(x));
  transposable::prefer_huge_pages(out.data(), out.nbytes());
  nb::gil_scoped_release release;
  transposable::stream_matmul(stream, values.data(), dtype, from, bias ? bias->data() : nullptr, y,
                              samples, threads);
}

nb::ndarray<nb::numpy, std::uint32_t> sparse_gradient_order(const Index& index, const Starts& starts,
                                                            std::int64_t rows, std::int64_t cols,
                                                            int row_block, int col_block, int threads) {
  const StreamView stream = stream_of(index, starts, rows, cols, row_block, col_block);
  transposable::GradientOrder order;
  {
    nb::gil_scoped_release release;
    order = transposable::gradient_order(stream, threads);
  }
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  return as_numpy(std::move(order.columns), {size(order.groups), size(order.slabs), size(order.slab)});
}

transposable::GradientColumns gradient_columns(const Order& order, std::int64_t rows,
                                               std::int64_t cols) {
  const auto size = [&](int i) { return static_cast<std::int64_t>(order.shape(i)); };
  const int group = transposable::rows_of_groups(size(0), rows);
  require(size(0) == (rows + group - 1) / group &&
              size(1) * size(2) >= cols && (size(1) - 1) * size(2) < std::max<std::int64_t>(cols, 1),
          "order: is not that of a matrix [rows, cols]");
  return {size(0), size(1), size(2), order.data()};
}

void sparse_weight_gradient(const Order& order, std::int64_t rows, std::int64_t cols,
                            const Matrix& x, const Matrix& dy, const FloatMatrix& out, int threads) {
  const transposable::GradientColumns columns = gradient_columns(order, rows, cols);
  const std::int64_t samples = static_cast<std::int64_t>(x.shape(0));
  require_shape(x, samples, cols, "x: shape must be [samples, cols]");
  require_shape(dy, samples, rows, "dy: shape must be [samples, rows]");
  require_shape(out, rows, cols, "out: shape must be [rows, cols]");
  require_contiguous(out);
  const transposable::RowSource inputs(samples_of(x)), gradients(samples_of(dy));
  transposable::prefer_huge_pages(out.data(), out.nbytes());
  nb::gil_scoped_release release;
  transposable::weight_gradient(columns, rows, cols, inputs, gradients, samples, out.data(), threads);
}

template <class Array>
std::int64_t extent(const Array& array, std::size_t dimension) {
  return static_cast<std::int64_t>(array.shape(dimension));
}

transposable::Images images_of(const Image& x) {
  return {x.data(),     storage_of(x.dtype()), extent(x, 0), extent(x, 1), extent(x, 2),
          extent(x, 3), x.stride(0),           x.stride(1),  x.stride(2),  x.stride(3)};
}

// Numbers so small that no position can overflow; whatever they are, what is outside of the image is 0.
transposable::Window window_of(const Pair& kernel, const Pair& stride, const Pair& padding,
                               const Pair& dilation) {
  constexpr std::int64_t most = std::int64_t{1} << 20;
  const auto between = [](const Pair& pair, std::int64_t least, std::int64_t largest) {
    return std::min(pair.first, pair.second) >= least && std::max(pair.first, pair.second) <= largest;
  };
  require(between(kernel, 1, most) && between(stride, 1, most) && between(dilation, -most, most) &&
              between(padding, -most * most, most * most),
          "window: kernel and stride must be 1 to 2^20, dilation at most 2^20, padding 2^40");
  return {kernel.first,  kernel.second,  stride.first,   stride.second,
          padding.first, padding.second, dilation.first, dilation.second};
}

void sparse_conv2d(const Index& index, const Starts& starts, std::int64_t rows, std::int64_t cols,
                   int row_block, int col_block, const Values& values, const Image& x,
                   const std::optional<Bias>& bias, const WritableImage& out, const Pair& kernel,
                   const Pair& stride, const Pair& padding, const Pair& dilation, int threads) {
  const StreamView stream = stream_of(index, starts, rows, cols, row_block, col_block);
  require_values(values, stream);
  const transposable::Window window = window_of(kernel, stride, padding, dilation);
  require(window.height * window.width * extent(x, 1) == cols,
          "x: its channels times the taps of the kernel must be cols");
  require(extent(out, 0) == extent(x, 0) && extent(out, 1) == rows,
          "out: shape must be [images, rows, height, width]");
  require(!bias || static_cast<std::int64_t>(bias->shape(0)) == rows, "bias: shape must be [rows]");
  const std::int64_t height = extent(out, 2), width = extent(out, 3), pixels = height * width;
  const std::int64_t samples = extent(x, 0) * pixels;
  if (samples * rows == 0) return;
  const auto lies = [&](std::int64_t image, std::int64_t channel, std::int64_t row, std::int64_t pixel) {
    return (out.stride(0) == image || extent(out, 0) == 1) && (out.stride(1) == channel || rows == 1) &&
           (out.stride(2) == row || height == 1) && (out.stride(3) == pixel || width == 1);
  };
  const bool planes = lies(rows * pixels, pixels, width, 1);
  require(planes || lies(rows * pixels, 1, width * rows, rows),
          "out: must be contiguous, or so with channels last");
  const DType dtype = storage_of(values.dtype()), y = storage_of(out.dtype());
  const transposable::Images images = images_of(x);
  transposable::prefer_huge_pages(out.data(), out.nbytes());
  nb::gil_scoped_release release;
  const transposable::ImageSource from(images, window, height, width);
  const float* const shift = bias ? bias->data() : nullptr;
  if (planes)
    transposable::stream_matmul(stream, values.data(), dtype, from, shift,
                                transposable::ImageSink(out.data(), y, rows, pixels), samples, threads);
  else
    transposable::stream_matmul(stream, values.data(), dtype, from, shift,
                                transposable::RowSink({out.data(), y, rows}), samples, threads);
}

void sparse_conv2d_weight_gradient(const Order& order, std::int64_t rows, std::int64_t cols,
                                   const Image& x, const Image& dy, const FloatMatrix& out, const Pair& kernel,
                                   const Pair& stride, const Pair& padding, const Pair& dilation,
                                   int threads) {
  const transposable::GradientColumns columns = gradient_columns(order, rows, cols);
  const transposable::Window window = window_of(kernel, stride, padding, dilation);
  require(window.height * window.width * extent(x, 1) == cols,
          "x: its channels times the taps of the kernel must be cols");
  require(extent(dy, 0) == extent(x, 0) && extent(dy, 1) == rows,
          "dy: shape must be [images, rows, height, width]");
  require_shape(out, rows, cols, "out: shape must be [rows, cols]");
  require_contiguous(out);
  const transposable::Images images = images_of(x), gradients = images_of(dy);
  const std::int64_t samples = gradients.batch * gradients.height * gradients.width;
  transposable::prefer_huge_pages(out.data(), out.nbytes());
  nb::gil_scoped_release release;
  transposable::weight_gradient(
      columns, rows, cols, transposable::ImageSource(images, window, gradients.height, gradients.width),
      transposable::ImageSource(gradients, {1, 1, 1, 1, 0, 0, 1, 1}, gradients.height,
                                gradients.width),
      samples, out.data(), threads);
}

}  // namespace

void bind_sparse(nb::module_& module) {
  module.def("sparse_index", &sparse_index, "mask"_a, "row_block"_a, "col_block"_a,
             "threads"_a = 1, "(index, starts) of the stream of a mask [rows, cols].");
  module.def("sparse_fill", &sparse_fill, "index"_a, "starts"_a, "rows"_a, "cols"_a, "row_block"_a,
             "col_block"_a, "weight"_a, "values"_a.noconvert(), "threads"_a,
             "Kept weights into values.");
  module.def("sparse_scatter", &sparse_scatter, "index"_a, "starts"_a, "rows"_a, "cols"_a,
             "row_block"_a, "col_block"_a, "values"_a, "out"_a.noconvert(), "threads"_a,
             "Values to their places in out, whose other entries stay.");
  module.def("sparse_matmul", &sparse_matmul, "index"_a, "starts"_a, "rows"_a, "cols"_a,
             "row_block"_a, "col_block"_a, "values"_a, "x"_a, "bias"_a.none(), "out"_a.noconvert(),
             "threads"_a, "out = x A^T + bias.");
  module.def("sparse_gradient_order", &sparse_gradient_order, "index"_a, "starts"_a, "rows"_a,
             "cols"_a, "row_block"_a, "col_block"_a, "threads"_a,
             "The columns as the weight gradient takes them: [groups, slabs, slab].");
  module.def("sparse_weight_gradient", &sparse_weight_gradient, "order"_a, "rows"_a, "cols"_a, "x"_a,
             "dy"_a, "out"_a.noconvert(), "threads"_a, "out = dy^T x where kept, 0 elsewhere.");
  module.def("sparse_conv2d", &sparse_conv2d, "index"_a, "starts"_a, "rows"_a, "cols"_a,
             "row_block"_a, "col_block"_a, "values"_a, "x"_a, "bias"_a.none(), "out"_a.noconvert(),
             "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "threads"_a,
             "out = x * A + bias, where the columns of A are the taps of a kernel, channel by channel.");
  module.def("sparse_conv2d_weight_gradient", &sparse_conv2d_weight_gradient, "order"_a, "rows"_a,
             "cols"_a, "x"_a, "dy"_a, "out"_a.noconvert(),
             "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "threads"_a,
             "The gradient of A for sparse_conv2d where kept, 0 elsewhere.");
  module.def(
      "sparse_blocking", [](int, int m) { return transposable::stream_blocking(m); }, "n"_a, "m"_a,
      "(row_block, col_block) that suits a pattern on the instruction set in use.");
  module.def("fma_peak", &transposable::peak_gflops, "seconds"_a,
             nb::call_guard<nb::gil_scoped_release>(),
             "GFLOP/s of one thread on multiply-adds in registers.");
}
