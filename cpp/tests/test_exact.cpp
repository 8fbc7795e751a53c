// Every engine that this machine runs against the 64-bit tile solver, tile by tile.
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "core/fixed_point.hpp"
#include "core/flow_tile.hpp"
#include "core/isa.hpp"

using namespace transposable;

namespace {

class NoFallback final : public TileFallback {
 public:
  void solve(std::int64_t, std::int64_t, std::int64_t) override { ++calls; }
  int calls = 0;
};

std::vector<float> family(int kind, std::size_t count) {
  std::mt19937 random(static_cast<unsigned>(kind) + 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& x : values) {
    x = normal(random);
    if (kind == 1) x = static_cast<float>(static_cast<int>(random() % 15) - 7);  // a coarse grid
    if (kind == 2 && random() % 2) x = 0;
    if (kind == 3) x = 0.25f;
    if (kind == 4) x *= std::exp2(static_cast<float>(random() % 6));  // uneven
  }
  return values;
}

void engine_matches(const LaneEngine& engine, int n, int m, int kind, bool magnitude) {
  const std::int64_t rows = 2 * m, cols = 40 * m;  // whole waves and a rest
  const std::vector<float> values = family(kind, static_cast<std::size_t>(rows * cols));
  std::vector<std::uint8_t> mask(values.size(), 7);  // neither 0 nor 1
  std::vector<double> u(static_cast<std::size_t>(rows * cols / m)), v(u.size());
  const Scores scores{values.data(), DType::f32, 1, rows, cols, rows * cols, cols, 1, magnitude};
  NoFallback fallback;
  const LaneJob job{scores, n, m, mask.data(), u.data(), v.data(), false};
  const std::unique_ptr<LaneSolver> solver(engine.make(job, fallback));
  solver->solve(0, 2);
  CHECK(fallback.calls == 0);
  CHECK(solver->stats().tiles == 80);
  FixedTile tile;
  FlowTile flow;
  for (int down = 0; down < 2; ++down)
    for (int across = 0; across < 40; ++across) {
      tile.load(scores, 0, down * m, across * m, m, m, false);
      flow.solve(tile.a, m, m, n, true);
      double best = 0, found = 0, scale = 0;
      std::vector<int> in_col(static_cast<std::size_t>(m));
      for (int i = 0; i < m; ++i) {
        int in_row = 0;
        for (int j = 0; j < m; ++j) {
          const double x = scores.at(0, down * m + i, across * m + j);
          const int kept = mask[static_cast<std::size_t>((down * m + i) * cols + across * m + j)];
          CHECK(kept == 0 || kept == 1);
          if (flow.kept(i) >> j & 1) best += x;
          if (kept) {
            found += x;
            scale += std::fabs(x);
            ++in_row;
            ++in_col[static_cast<std::size_t>(j)];
          }
        }
        CHECK(in_row == n);
      }
      for (const int count : in_col) CHECK(count == n);
      CHECK(std::fabs(best - found) <= 1e-6 * scale);
    }
}

}  // namespace

int main() {
  const int patterns[][2] = {{1, 4}, {2, 4}, {3, 4}, {1, 8},   {4, 8},   {6, 8},   {8, 16},  {3, 16},
                             {1, 2}, {5, 12}, {16, 32}, {8, 32}, {32, 64}, {48, 64}, {7, 24}};
  for (const LaneEngine* engine : usable_engines())
    for (const auto& pattern : patterns)
      for (int kind = 0; kind < 5; ++kind)
        for (const bool magnitude : {true, false}) {
          if (!magnitude && kind == 4) continue;  // signed and uneven: the caller's second look
          engine_matches(*engine, pattern[0], pattern[1], kind, magnitude);
        }
  return check::result("test_exact");
}
