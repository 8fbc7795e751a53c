#include "row_wise.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <mutex>
#include <type_traits>

#include "approx/elements.hpp"
#include "approx/lane_kernels.hpp"
#include "parallel.hpp"

namespace transposable {

namespace {

constexpr std::int64_t kSegment = 1024;  // columns at a time: 16 rows of them stay in the cache

// One group of any length and kind of key: the n greatest, ties to the lower index.
template <class Key>
void choose_group(const Key* keys, int length, int n, bool cropped, std::uint8_t* kept) {
  Key order[64];
  std::copy_n(keys, length, order);
  const bool all = n >= length;
  if (!all) std::nth_element(order, order + n - 1, order + length, std::greater<>());
  const Key threshold = all ? Key{} : order[n - 1];
  int ties = n;  // entries at the threshold that still fit
  for (int j = 0; j < length; ++j) ties -= keys[j] > threshold;
  for (int j = 0; j < length; ++j) {
    const bool tie = keys[j] == threshold && ties > 0;
    ties -= tie;
    kept[j] = (all || keys[j] > threshold || tie) && !(cropped && keys[j] < 0);
  }
}

// Integer keys in the order of the scores; doubles are their own keys.
template <bool kMagnitude, class T>
auto key_of(T x) {
  const auto value = widen(x);
  if constexpr (std::is_same_v<T, double>)
    return kMagnitude ? std::fabs(value) : value;
  else if constexpr (kMagnitude)
    return std::bit_cast<std::int32_t>(value) & 0x7fffffff;
  else
    return ordered(value);
}

// Whether any key is that of a NaN, whose place in the order is beyond the infinities.
bool any_nan(const std::int32_t* keys, std::int64_t count) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  std::int32_t found = 0;
  for (std::int64_t c = 0; c < count; ++c)
    found |= (keys[c] > kInfinity) | (keys[c] < -kInfinity - 1);
  return found;
}

bool any_nan(const double* keys, std::int64_t count) {
  bool found = false;
  for (std::int64_t c = 0; c < count; ++c) found |= std::isnan(keys[c]);
  return found;
}

// Returns false, and writes nothing, where there is a NaN.
template <bool kMagnitude, class T>
bool choose_segment(const T* line, std::int64_t stride, std::int64_t count, int n, int m,
                    std::uint8_t* kept) {
  using Key = decltype(key_of<kMagnitude>(*line));
  Key keys[kSegment];
  if (stride == 1)  // a constant stride is what lets this loop be vectorised
    for (std::int64_t c = 0; c < count; ++c) keys[c] = key_of<kMagnitude>(line[c]);
  else
    for (std::int64_t c = 0; c < count; ++c) keys[c] = key_of<kMagnitude>(line[c * stride]);
  if (any_nan(keys, count)) return false;
  std::int64_t c = 0;
  if constexpr (std::is_same_v<Key, std::int32_t>)
    if (m == 4 || m == 8 || m == 16 || m == 32) {
      lane_kernels().choose(keys, count / m, n, m, kept);
      c = count / m * m;
    }
  for (; c < count; c += m) {
    const int length = static_cast<int>(std::min<std::int64_t>(m, count - c));
    choose_group(keys + c, length, n, length < m, kept + c);
  }
  return true;
}

std::int64_t first_nan(const Scores& scores, std::int64_t line, std::int64_t col) {
  while (!std::isnan(scores.at(line / scores.rows, line % scores.rows, col))) ++col;
  return col;
}

}  // namespace

std::optional<NanPlace> row_wise(const Scores& scores, int n, int m, int threads,
                                 std::uint8_t* mask) {
  const std::int64_t step = kSegment / m * m;
  std::optional<NanPlace> nan;
  std::mutex guard;
  with_elements(scores, [&](const auto* data) {
    parallel_chunks(scores.batch * scores.rows, 16, threads, [&] {
      return [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t c0 = 0; c0 < scores.cols; c0 += step)
          for (std::int64_t line = begin; line < end; ++line) {
            const std::int64_t b = line / scores.rows, r = line % scores.rows;
            const auto* from = data + scores.offset(b, r, c0);
            const std::int64_t count = std::min(step, scores.cols - c0);
            std::uint8_t* kept = mask + line * scores.cols + c0;
            if (scores.magnitude
                    ? choose_segment<true>(from, scores.col_stride, count, n, m, kept)
                    : choose_segment<false>(from, scores.col_stride, count, n, m, kept))
              continue;
            const std::lock_guard lock(guard);
            if (!nan) nan = NanPlace{b, r, first_nan(scores, line, c0)};
            return;
          }
      };
    });
  });
  return nan;
}

}  // namespace transposable
