// The building blocks of the lanes: networks, order statistics, transpositions, saturation.
#define TP_ISA test
#define TP_BYTES 16
#include "core/lanes/tied.hpp"

#include <algorithm>
#include <random>
#include <vector>

#include "check.hpp"

using namespace transposable::test;

namespace {

// A network that sorts every sequence of zeros and ones sorts everything (Knuth's 0-1 principle).
template <int Length>
void network_sorts() {
  const std::uint64_t patterns = std::uint64_t{1} << std::min(Length, 16);
  std::mt19937_64 random(Length);
  for (std::uint64_t k = 0; k < patterns; ++k) {
    const std::uint64_t bits = Length <= 16 ? k : random();
    I16 x[Length];
    for (int i = 0; i < Length; ++i) x[i] = splat<I16>(bits >> i & 1);
    sort_descending<Length>(x);
    for (int i = 1; i < Length; ++i) CHECK(x[i - 1][0] >= x[i][0]);
  }
}

template <int Length, int N>
void statistics_match_sort(int n) {
  std::mt19937 random(Length + n);
  for (int trial = 0; trial < 200; ++trial) {
    I16 x[Length], nth, next;
    std::vector<int> first(Length);
    for (int i = 0; i < Length; ++i)
      for (int lane = 0; lane < kLanes16; ++lane) {
        x[i][lane] = static_cast<std::int16_t>(random() % (trial % 2 ? 9 : 30000));
        if (lane == 3) first[static_cast<std::size_t>(i)] = x[i][lane];
      }
    order_statistics<Length, N>(x, n, nth, next);
    std::sort(first.rbegin(), first.rend());
    CHECK(nth[3] == first[static_cast<std::size_t>(n - 1)]);
    CHECK(next[3] == first[static_cast<std::size_t>(n)]);
  }
}

template <int Count>
void interleave_inverts_deinterleave() {
  I16 in[Count], apart[Count], back[Count];
  for (int k = 0; k < Count; ++k)
    for (int lane = 0; lane < kLanes16; ++lane) in[k][lane] = static_cast<std::int16_t>(k * kLanes16 + lane);
  deinterleave<Count>(in, apart, 1);
  for (int k = 0; k < Count; ++k)
    for (int lane = 0; lane < kLanes16; ++lane) CHECK(apart[k][lane] == lane * Count + k);
  interleave<Count>(apart, back);
  for (int k = 0; k < Count; ++k)
    for (int lane = 0; lane < kLanes16; ++lane) CHECK(back[k][lane] == in[k][lane]);
}

void saturation() {
  std::mt19937 random(5);
  for (int trial = 0; trial < 20000; ++trial) {
    const int a = static_cast<std::int16_t>(random()), b = static_cast<std::int16_t>(random());
    const I16 va = splat<I16>(a), vb = splat<I16>(b);
    CHECK(add_saturated(va, vb)[1] == std::clamp(a + b, -32768, 32767));
    CHECK(subtract_saturated(va, vb)[1] == std::clamp(a - b, -32768, 32767));
    CHECK(floor_average(va, vb)[1] == (a + b) >> 1);
  }
}

void folds() {
  I32 x{};
  for (int lane = 0; lane < kLanes32; ++lane) x[lane] = (lane * 7 + 3) % 5 - 2;
  int sum = 0, least = 9, most = -9;
  for (int lane = 0; lane < kLanes32; ++lane) {
    sum += x[lane];
    least = std::min(least, static_cast<int>(x[lane]));
    most = std::max(most, static_cast<int>(x[lane]));
  }
  CHECK(reduce_add(x) == sum);
  CHECK(reduce_min(x) == least);
  CHECK(reduce_max(x) == most);
}

}  // namespace

int main() {
  network_sorts<2>();
  network_sorts<4>();
  network_sorts<8>();
  network_sorts<16>();
  network_sorts<32>();
  network_sorts<64>();
  statistics_match_sort<8, 4>(4);
  statistics_match_sort<8, 1>(1);
  statistics_match_sort<16, 8>(8);
  statistics_match_sort<16, 4>(4);
  statistics_match_sort<32, 16>(16);
  for (int n = 1; n < 8; ++n) statistics_match_sort<8, 0>(n);
  for (int n = 1; n < 64; n += 7) statistics_match_sort<64, 0>(n);
  interleave_inverts_deinterleave<2>();
  interleave_inverts_deinterleave<4>();
  interleave_inverts_deinterleave<8>();
  saturation();
  folds();
  return check::result("test_lanes");
}
