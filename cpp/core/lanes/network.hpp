// Order statistics of a fixed number of vectors, lane by lane, without branches.
#pragma once

#include "vec.hpp"

namespace transposable::TP_ISA {

// Batcher's odd-even merge sort for any length; descending.
template <int Length>
struct Network {
  struct Exchange {
    int high, low;
  };

  template <class Visit>
  static constexpr void visit(Visit visit) {
    for (int p = 1; p < Length; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < Length; j += 2 * k)
          for (int i = 0; i < k && i + j + k < Length; ++i)
            if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) visit(Exchange{i + j, i + j + k});
  }
  static constexpr int count() {
    int n = 0;
    visit([&](Exchange) { ++n; });
    return n;
  }
  struct List {
    Exchange items[count() > 0 ? count() : 1];
  };
  static constexpr List list() {
    List result{};
    int n = 0;
    visit([&](Exchange exchange) { result.items[n++] = exchange; });
    return result;
  }
  static constexpr List exchanges = list();
};

template <int Length, class V>
TP_INLINE void sort_descending(V* x) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    auto exchange = [&](int high, int low) __attribute__((always_inline)) {
      const V greater = max(x[high], x[low]);
      x[low] = min(x[high], x[low]);
      x[high] = greater;
    };
    (exchange(Network<Length>::exchanges.items[I].high, Network<Length>::exchanges.items[I].low), ...);
  }(std::make_integer_sequence<int, Network<Length>::count()>{});
}

// The K-th largest (from 1) of two descending lists of Half: the largest over i of
// min(a_i, b_(K-i)), where a list of no element counts as infinity.
template <int Half, int K, class V>
TP_INLINE V kth_of_sorted(const V* a, const V* b) {
  V best{};
  bool first = true;
#pragma GCC unroll 64
  for (int i = 0; i <= K; ++i) {
    const int k = K - i;
    if (i > Half || k > Half) continue;
    const V term = i == 0 ? b[k - 1] : k == 0 ? a[i - 1] : min(a[i - 1], b[k - 1]);
    best = first ? term : max(best, term);
    first = false;
  }
  return best;
}

// The n-th and the (n+1)-th largest of x[0 .. Length), 1 <= n < Length; x is overwritten. N = 0: n
// is only known at run time.
template <int Length, int N, class V>
TP_INLINE void order_statistics(V* x, int n, V& nth, V& next) {
  if constexpr (N == 0) {
    sort_descending<Length>(x);
    V sorted[Length];
#pragma GCC unroll 64
    for (int k = 0; k < Length; ++k) sorted[k] = x[k];
    asm volatile("" : : "r"(sorted) : "memory");  // n indexes memory: keep the array there
    nth = sorted[n - 1];
    next = sorted[n];
  } else {
    constexpr int half = Length / 2;
    sort_descending<half>(x);
    sort_descending<half>(x + half);
    nth = kth_of_sorted<half, N>(x, x + half);
    next = kth_of_sorted<half, N + 1>(x, x + half);
  }
}

}  // namespace transposable::TP_ISA
