// Convolutions with a compressed kernel against plain loops, with every instruction set that this
// machine has. Images begin or end at pages that must not be touched.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "chosen_isa.hpp"
#include "core/sparse/bfloat16.hpp"
#include "core/sparse/image.hpp"
#include "core/sparse/matmul.hpp"
#include "guarded.hpp"

namespace {

using namespace transposable;

struct Case {
  std::int64_t batch, channels, height, width, out;
  Window window;
  bool channels_last, at_start;
};

std::vector<float> random_floats(std::int64_t count, std::mt19937& draw) {
  std::normal_distribution<float> normal;
  std::vector<float> found(static_cast<std::size_t>(count));
  // What bfloat16 can hold: both dtypes then have the same inputs.
  for (float& x : found) x = bf16_to_float(float_to_bf16(normal(draw)));
  return found;
}

std::vector<std::uint16_t> narrowed(const std::vector<float>& from) {
  std::vector<std::uint16_t> found;
  for (const float x : from) found.push_back(float_to_bf16(x));
  return found;
}

bool near(float found, double wanted, double tolerance) {
  return std::fabs(found - wanted) <= tolerance * (1 + std::fabs(wanted));
}

// Element (n, c, r, p) of images in one of the two formats.
struct Format {
  std::int64_t channels, height, width;
  bool last;
  std::int64_t operator()(std::int64_t n, std::int64_t c, std::int64_t r, std::int64_t p) const {
    return last ? ((n * height + r) * width + p) * channels + c
                : ((n * channels + c) * height + r) * width + p;
  }
  Images images(const void* data, DType dtype, std::int64_t batch) const {
    const std::int64_t pixels = height * width;
    if (last) return {data, dtype, batch, channels, height, width, channels * pixels, 1, width * channels, channels};
    return {data, dtype, batch, channels, height, width, channels * pixels, pixels, width, 1};
  }
};

void run(const Case& c, std::mt19937& draw) {
  const Window& w = c.window;
  const std::int64_t cols = w.height * w.width * c.channels;
  const std::int64_t out_height = std::max<std::int64_t>(1, (c.height + 2 * w.row_padding - w.row_dilation * (w.height - 1) - 1) / w.row_stride + 1);
  const std::int64_t out_width = std::max<std::int64_t>(1, (c.width + 2 * w.col_padding - w.col_dilation * (w.width - 1) - 1) / w.col_stride + 1);
  const std::int64_t pixels = out_height * out_width, samples = c.batch * pixels;
  const Format in{c.channels, c.height, c.width, c.channels_last}, to{c.out, out_height, out_width, c.channels_last};

  std::vector<std::uint8_t> mask(static_cast<std::size_t>(c.out * cols));
  std::bernoulli_distribution kept(0.5);
  for (auto& entry : mask) entry = kept(draw);
  std::vector<float> dense = random_floats(c.out * cols, draw);
  for (std::size_t i = 0; i < mask.size(); ++i) dense[i] *= mask[i];
  const StreamShape shape{c.out, cols, c.batch % 2 ? 8 : 4, 64};
  const StreamIndex built = build_stream(mask.data(), cols, 1, shape, 1);
  const StreamView stream{shape, built.index.data(), built.index_starts.data(), built.value_starts.data()};
  std::vector<float> values(static_cast<std::size_t>(built.value_starts.back()));
  fill_stream(stream, {dense.data(), DType::f32, cols, 1}, values.data(), DType::f32, 1);

  const std::vector<float> x = random_floats(c.batch * c.channels * c.height * c.width, draw);
  const std::vector<float> dy = random_floats(samples * c.out, draw), bias = random_floats(c.out, draw);
  using Wide = Guarded<float>;
  using Narrow = Guarded<std::uint16_t>;
  const auto wide_side = c.at_start ? Wide::Side::start : Wide::Side::end;
  const auto narrow_side = c.at_start ? Narrow::Side::start : Narrow::Side::end;
  const Wide x32(x, wide_side), dy32(dy, wide_side);
  const Narrow x16(narrowed(x), narrow_side), dy16(narrowed(dy), narrow_side);
  const auto source = [&](std::int64_t row, std::int64_t col, std::int64_t tap, std::int64_t n, std::int64_t k) {
    const std::int64_t r = row * w.row_stride - w.row_padding + tap / w.width * w.row_dilation;
    const std::int64_t p = col * w.col_stride - w.col_padding + tap % w.width * w.col_dilation;
    if (r < 0 || r >= c.height || p < 0 || p >= c.width) return 0.0;
    return double(x[static_cast<std::size_t>(in(n, k, r, p))]);
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const bool wide = dtype == DType::f32;
    const ImageSource from(in.images(wide ? static_cast<const void*>(x32.data()) : x16.data(), dtype, c.batch), w,
                           out_height, out_width);
    const Guarded y32(std::vector<float>(wide ? dy.size() : 0, NAN));
    const Guarded y16(std::vector<std::uint16_t>(wide ? 0 : dy.size(), 0x7fc0));
    void* const y = wide ? static_cast<void*>(y32.data()) : y16.data();
    if (c.channels_last)
      stream_matmul(stream, values.data(), DType::f32, from, bias.data(), RowSink({y, dtype, c.out}), samples, 2);
    else
      stream_matmul(stream, values.data(), DType::f32, from, bias.data(), ImageSink(y, dtype, c.out, pixels), samples, 2);
    const ImageSource gradients(to.images(wide ? static_cast<const void*>(dy32.data()) : dy16.data(), dtype, c.batch),
                                {1, 1, 1, 1, 0, 0, 1, 1}, out_height, out_width);
    const Guarded gradient(std::vector<float>(mask.size(), NAN));
    weight_gradient(gradient_order(stream, 2).view(), shape.rows, shape.cols, from, gradients, samples,
                    gradient.data(), 2);

    std::vector<double> sums(mask.size(), 0.0);
    for (std::int64_t n = 0; n < c.batch; ++n)
      for (std::int64_t row = 0; row < out_height; ++row)
        for (std::int64_t col = 0; col < out_width; ++col) {
          std::vector<double> seen;
          for (std::int64_t k = 0; k < cols; ++k) seen.push_back(source(row, col, k / c.channels, n, k % c.channels));
          for (std::int64_t o = 0; o < c.out; ++o) {
            double sum = bias[static_cast<std::size_t>(o)];
            const auto at = static_cast<std::size_t>(to(n, o, row, col));
            for (std::int64_t k = 0; k < cols; ++k) {
              sum += dense[static_cast<std::size_t>(o * cols + k)] * seen[static_cast<std::size_t>(k)];
              sums[static_cast<std::size_t>(o * cols + k)] += double(dy[at]) * seen[static_cast<std::size_t>(k)];
            }
            const auto place = static_cast<std::int64_t>(at);
            CHECK(near(wide ? y32[place] : bf16_to_float(y16[place]), sum, wide ? 1e-4 : 1e-2));
          }
        }
    for (std::size_t i = 0; i < mask.size(); ++i)
      CHECK(near(gradient[static_cast<std::int64_t>(i)], mask[i] ? sums[i] : 0, 1e-4));
  }
}

}  // namespace

// The instruction set is chosen once for a process: CTest runs this once for each by the environment.
int main() {
  if (!usable("test_image")) return kSkipped;
  std::mt19937 draw(11);
  const Window windows[] = {
      {1, 1, 1, 1, 0, 0, 1, 1}, {3, 3, 1, 1, 1, 1, 1, 1}, {3, 2, 2, 2, 1, 1, 1, 1}, {1, 1, 2, 2, 0, 0, 1, 1},
      {2, 3, 1, 2, 3, 2, 2, 1}, {3, 3, 3, 1, 0, 0, 1, 1},
      // As the input gradient walks: backwards.
      {3, 3, 1, 1, -1, -1, -1, -1}, {2, 3, 1, 1, -2, 0, -2, -1},
  };
  for (const Window& window : windows)
    for (const auto& [channels_last, at_start] :
         {std::pair{false, false}, {false, true}, {true, false}, {true, true}})
      for (const std::int64_t batch : {0, 1, 3})
        for (const std::int64_t channels : {1, 5, 17, 33})
          for (const auto& [height, width] : {std::pair{1, 1}, {5, 7}, {7, 16}, {4, 70}})
            if (height + 2 * std::abs(window.row_padding) >= 5 && width + 2 * std::abs(window.col_padding) >= 5)
              run({batch, channels, height, width, 9, window, channels_last, at_start}, draw);
  return check::result("test_image");
}
