// Compressed matrices against plain loops, with every instruction set that this machine has. What comes
// from outside ends at a page that must not be touched: to read or write beyond it ends the test.
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "chosen_isa.hpp"
#include "core/sparse/matmul.hpp"
#include "guarded.hpp"

namespace {

using namespace transposable;

struct Case {
  std::int64_t rows, cols, samples;
  int row_block, col_block;
  double density;
  int threads;
};

std::vector<float> random_floats(std::int64_t count, std::mt19937& draw) {
  std::normal_distribution<float> normal;
  std::vector<float> found(count);
  for (float& x : found) x = normal(draw);
  return found;
}

bool near(float found, double wanted) { return std::fabs(found - wanted) <= 1e-4 * (1 + std::fabs(wanted)); }

void run(const Case& c, std::mt19937& draw) {
  std::vector<std::uint8_t> mask(c.rows * c.cols);
  std::bernoulli_distribution kept(c.density);
  for (auto& entry : mask) entry = kept(draw);
  const Guarded weight(random_floats(c.rows * c.cols, draw)), x(random_floats(c.samples * c.cols, draw)),
      dy(random_floats(c.samples * c.rows, draw)), bias(random_floats(c.rows, draw));
  const Guarded kept_mask(mask);
  const StreamShape shape{c.rows, c.cols, c.row_block, c.col_block};
  const StreamIndex built = build_stream(kept_mask.data(), c.cols, 1, shape, c.threads);
  const Guarded index(built.index);
  const StreamView stream{shape, index.data(), built.index_starts.data(), built.value_starts.data()};
  const Guarded values(std::vector<float>(built.value_starts.back(), NAN));
  fill_stream(stream, {weight.data(), DType::f32, c.cols, 1}, values.data(), DType::f32, c.threads);

  const Guarded dense(std::vector<float>(c.rows * c.cols));
  scatter_stream(stream, values.data(), DType::f32, dense.data(), c.cols, 1, c.threads);
  for (std::int64_t i = 0; i < c.rows * c.cols; ++i) CHECK(dense[i] == (mask[i] ? weight[i] : 0));

  const Guarded y(std::vector<float>(c.samples * c.rows, NAN)),
      gradient(std::vector<float>(c.rows * c.cols, NAN));
  stream_matmul(stream, values.data(), DType::f32, RowSource({x.data(), DType::f32, c.cols}),
                bias.data(), RowSink({y.data(), DType::f32, c.rows}), c.samples, c.threads);
  const GradientOrder order = gradient_order(stream, c.threads);
  const Guarded columns(order.columns);
  weight_gradient({order.groups, order.slabs, order.slab, columns.data()}, c.rows, c.cols,
                  RowSource({x.data(), DType::f32, c.cols}), RowSource({dy.data(), DType::f32, c.rows}),
                  c.samples, gradient.data(), c.threads);
  for (std::int64_t t = 0; t < c.samples; ++t)
    for (std::int64_t r = 0; r < c.rows; ++r) {
      double sum = bias[r];
      for (std::int64_t k = 0; k < c.cols; ++k) sum += double(dense[r * c.cols + k]) * x[t * c.cols + k];
      CHECK(near(y[t * c.rows + r], sum));
    }
  for (std::int64_t r = 0; r < c.rows; ++r)
    for (std::int64_t k = 0; k < c.cols; ++k) {
      double sum = 0;
      for (std::int64_t t = 0; t < c.samples; ++t) sum += double(dy[t * c.rows + r]) * x[t * c.cols + k];
      CHECK(near(gradient[r * c.cols + k], mask[r * c.cols + k] ? sum : 0));
    }
}

void test_refused() {
  const std::uint8_t mask[16] = {};
  for (const StreamShape& shape : {StreamShape{4, 4, 5, 16}, StreamShape{4, 4, 8, 0},
                                   StreamShape{4, 4, 8, 65537}}) {
    bool refused = false;
    try {
      build_stream(mask, 4, 1, shape, 1);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

}  // namespace

// The instruction set is chosen once for a process: CTest runs this once for each by the environment.
int main() {
  if (!usable("test_sparse")) return kSkipped;
  std::mt19937 draw(7);
  for (const int row_block : {4, 8})
    for (const int col_block : {16, 2048})
      for (const double density : {0.0, 0.25, 0.5, 1.0})
        for (const std::int64_t rows : {0, 1, 7, 8, 17, 40})
          for (const std::int64_t cols : {0, 1, 16, 37})
            for (const std::int64_t samples : {0, 1, 16, 47, 50, 100})
              run({rows, cols, samples, row_block, col_block, density, 1 + int(rows + samples) % 3}, draw);
  run({24, 600, 1100, 8, 2048, 0.5, 2}, draw);  // more columns and samples than are at hand at once
  run({24, 600, 1100, 4, 128, 0.5, 2}, draw);
  // Strips of rows, several blocks to a call, columns that are bytes and long runs of fours.
  for (const double density : {0.25, 0.5}) run({300, 520, 70, 4, 256, density, 3}, draw);
  test_refused();
  return check::result("test_sparse");
}
