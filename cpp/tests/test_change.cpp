// compare_masks against a plain loop: every dtype, memory orders, lengths around the vectors, threads.
#include "core/change/change.hpp"

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "check.hpp"

namespace {

using namespace transposable;

constexpr int kBytes[] = {4, 8, 2, 2};  // of f32, f64, f16, bf16

struct Tensors {
  std::vector<std::uint8_t> weight, mask, found;
  DType dtype;

  // Numbers of any sign whose bits are random, but no NaN and no infinity.
  Tensors(std::int64_t count, DType type, unsigned seed)
      : weight(static_cast<std::size_t>(count * kBytes[static_cast<int>(type)])),
        mask(static_cast<std::size_t>(count)), found(mask.size()), dtype(type) {
    std::mt19937 random(seed);
    for (std::int64_t k = 0; k < count; ++k) {
      mask[static_cast<std::size_t>(k)] = random() % 2;
      found[static_cast<std::size_t>(k)] = random() % 2;
      const double x = static_cast<double>(random() % 4096) - 2048;
      const auto small = static_cast<float>(x / 64);
      void* const to = weight.data() + k * kBytes[static_cast<int>(type)];
      const auto bits = static_cast<std::uint16_t>(random() % 0x7c00 | random() % 2 << 15);
      switch (type) {
        case DType::f32: __builtin_memcpy(to, &small, 4); break;
        case DType::f64: __builtin_memcpy(to, &x, 8); break;
        case DType::f16: __builtin_memcpy(to, &bits, 2); break;
        case DType::bf16: {
          const auto high = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(small) >> 16);
          __builtin_memcpy(to, &high, 2);
        }
      }
    }
  }

  double magnitude(std::int64_t at) const {
    return Scores{weight.data(), dtype, 0, 0, 0, 0, 0, 1, true}.at(0, 0, at);
  }
};

// Visits all elements in the order of the axes.
template <class Visit>
void visit(const std::vector<ChangeAxis>& axes, Visit visit_one, std::size_t depth = 0,
           std::int64_t w = 0, std::int64_t m = 0, std::int64_t f = 0) {
  if (depth == axes.size()) return visit_one(w, m, f);
  for (std::int64_t k = 0; k < axes[depth].size; ++k)
    visit(axes, visit_one, depth + 1, w + k * axes[depth].weight, m + k * axes[depth].mask,
          f + k * axes[depth].found);
}

void compare(const std::vector<ChangeAxis>& axes, std::int64_t count, DType dtype) {
  const Tensors start(count, dtype, static_cast<unsigned>(count));
  MaskChange expected;
  visit(axes, [&](std::int64_t w, std::int64_t m, std::int64_t f) {
    const auto now = start.found[static_cast<std::size_t>(f)];
    expected.flips += now != start.mask[static_cast<std::size_t>(m)];
    expected.kept += now ? start.magnitude(w) : 0;
    expected.total += start.magnitude(w);
  });
  MaskChange of_one_thread;
  for (const int threads : {1, 2, 7}) {
    const ChangeJob job{start.weight.data(), dtype, start.mask.data(), start.found.data(), axes};
    const MaskChange change = compare_masks(job, threads);
    CHECK_EQUAL(change.flips, expected.flips);
    CHECK(std::fabs(change.kept - expected.kept) <= 1e-12 * expected.kept);
    CHECK(std::fabs(change.total - expected.total) <= 1e-12 * expected.total);
    if (threads == 1) of_one_thread = change;
    CHECK_EQUAL(change.kept, of_one_thread.kept);
    CHECK_EQUAL(change.total, of_one_thread.total);
  }
}

void memory_orders(DType dtype) {
  for (std::int64_t n = 0; n < 70; ++n) compare({{n, 1, 1, 1}}, n + 1, dtype);
  compare({}, 1, dtype);
  compare({{3, 0, 1, 1}}, 3, dtype);                                  // an expanded weight
  compare({{5, 1, 40, 40}, {40, 5, 1, 1}}, 200, dtype);               // transposed against the masks
  compare({{6, 60, 60, 60}, {5, 1, 12, 12}, {12, 5, 1, 1}}, 360, dtype);  // channels last
  compare({{6, 1, 60, 1}, {1, 99, 7, 5}, {10, 6, 6, 6}, {6, 60, 1, 60}}, 360, dtype);
  compare({{3, 34, 17, 17}, {17, 2, 1, 1}}, 102, dtype);              // every second element
  compare({{3, 200'000, 200'000, 200'000}, {200'000, 1, 1, 1}}, 600'000, dtype);
  compare({{700, 1, 900, 900}, {900, 700, 1, 1}}, 630'000, dtype);
  compare({{4, 0, 0, 0}, {0, 1, 1, 1}}, 4, dtype);                    // nothing
}

// 1, -infinity and 2: an infinite weight counts where it is kept, and only there.
template <class T>
void infinities(DType dtype, T one, T infinity, T two) {
  for (const std::int64_t step : {1, 2}) {  // the kernel, and the loop for other strides
    const T weight[] = {one, one, infinity, infinity, two, two};
    const std::uint8_t none[] = {0, 0, 0}, first[] = {1, 0, 1}, both[] = {1, 1, 0};
    const T packed[] = {one, infinity, two};
    const ChangeAxis axis{3, step, 1, 1};
    const void* const data = step == 1 ? packed : weight;
    const MaskChange without = compare_masks({data, dtype, none, first, {axis}}, 1);
    CHECK_EQUAL(without.kept, 3);
    CHECK_EQUAL(without.total, INFINITY);
    const MaskChange with = compare_masks({data, dtype, first, both, {axis}}, 1);
    CHECK_EQUAL(with.kept, INFINITY);
    CHECK_EQUAL(with.flips, 2);
  }
}

}  // namespace

int main() {
  for (const DType dtype : {DType::f32, DType::f64, DType::f16, DType::bf16}) memory_orders(dtype);
  infinities<float>(DType::f32, 1, -INFINITY, 2);
  infinities<double>(DType::f64, 1, -INFINITY, 2);
  infinities<std::uint16_t>(DType::f16, 0x3c00, 0xfc00, 0x4000);
  infinities<std::uint16_t>(DType::bf16, 0x3f80, 0xff80, 0x4000);
  return check::result("test_change");
}
