// The kernels of lane_kernels.hpp in compiler vector extensions. Included by kernels_*.cpp only,
// with TP_ISA and TP_BYTES set; the rules of lanes/vec.hpp hold. A kernel takes as many lanes at a
// time as fit one register, and then the next ones.
#pragma once

#include "../lanes/vec.hpp"
#include "lane_kernels.hpp"

namespace transposable::TP_ISA {

typedef double F64 __attribute__((vector_size(TP_BYTES)));

// 1 in byte j of a 32-bit word, in memory order.
inline std::int32_t byte_one(int j) {
  return 1 << 8 * (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? j : 3 - j);
}

inline int smaller(int a, int b) { return a < b ? a : b; }

// Batcher's odd-even merge sort. With fewer than a power of two keys the missing ones count as
// larger than all others, and their comparators are left out.
inline void sort(double* keys, int count) {
  constexpr int kParts = kSortLanes * 8 / TP_BYTES;
  for (int p = 1; p < count; p *= 2)
    for (int k = p; k >= 1; k /= 2)
      for (int j = k % p; j + k < count; j += 2 * k) {
        if (j / (2 * p) != (j + k) / (2 * p)) continue;  // the same for all of this run
        double* low = keys + j * kSortLanes;
        double* high = low + k * kSortLanes;
        const int run = smaller(k, count - j - k) * kParts;
        for (int x = 0; x < run; ++x, low += TP_BYTES / 8, high += TP_BYTES / 8) {
          const F64 a = load<F64>(low), b = load<F64>(high);
          store(low, min(a, b));
          store(high, max(a, b));
        }
      }
}

// With d_j = a_ij - a_kj, row i gives column `give` to row k for column `take`, and the tile gains
// d_take - d_give.
inline bool exchange(const float* a, std::int32_t* kept, int m) {
  const F32 far = F32{} + __builtin_inff();
  bool changed = false;
  for (int part = 0; part < kLanes; part += kLanes32)
    for (int i = 0; i < m; ++i)
      for (int k = i + 1; k < m; ++k) {
        const float *ai = a + i * m * kLanes + part, *ak = a + k * m * kLanes + part;
        std::int32_t *si = kept + i * m * kLanes + part, *sk = kept + k * m * kLanes + part;
        F32 low = far, high = -far;
        I32 give = I32{} - 1, take = I32{} - 1, column = I32{};
        for (int j = 0; j < m; ++j, column += 1) {
          const int at = j * kLanes;
          const F32 d = load<F32>(ai + at) - load<F32>(ak + at);
          const I32 in_i = load<I32>(si + at), in_k = load<I32>(sk + at);
          const F32 here = (in_i & ~in_k) != 0 ? d : far;
          const F32 there = (in_k & ~in_i) != 0 ? d : -far;
          give = here < low ? column : give;
          low = min(here, low);
          take = there > high ? column : take;
          high = max(there, high);
        }
        const I32 gain = high > low;
        bool any = false;
        for (int lane = 0; lane < kLanes32; ++lane) any |= gain[lane] != 0;
        if (!any) continue;
        changed = true;
        give |= ~gain;  // -1: no column
        take |= ~gain;
        column = I32{};
        for (int j = 0; j < m; ++j, column += 1) {
          const int at = j * kLanes;
          const I32 toggle = (give == column) | (take == column);
          store(si + at, load<I32>(si + at) ^ toggle);
          store(sk + at, load<I32>(sk + at) ^ toggle);
        }
      }
  return changed;
}

// exp for |x| <= 80, relative error about 2e-7.
TP_INLINE F32 exp_lanes(F32 x) {
  const F32 round = F32{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F32 whole = (x * 1.44269504f + round) - round;
  const F32 f = (x - whole * 0.693145752f) - whole * 1.42860677e-6f;
  F32 p = f * 0.00138888889f + 0.00833333333f;
  p = f * p + 0.0416666667f;
  p = f * p + 0.166666667f;
  p = f * p + 0.5f;
  p = f * (f * p + 1.0f) + 1.0f;
  const I32 power = (__builtin_convertvector(whole, I32) + 127) << 23;
  return p * __builtin_bit_cast(F32, power);
}

// log for positive normal x, absolute error about 1e-7.
TP_INLINE F32 log_lanes(F32 x) {
  const I32 bits = __builtin_bit_cast(I32, x);
  const I32 exponent = (bits - 0x3f3504f3) >> 23;  // x / 2^exponent lies within [0.7, 1.42)
  const F32 y = __builtin_bit_cast(F32, bits - (exponent << 23));
  const F32 t = (y - 1.0f) / (y + 1.0f), s = t * t;
  const F32 series = s * (s * (s * 0.142857143f + 0.2f) + 0.333333333f) + 1.0f;
  return __builtin_convertvector(exponent, F32) * 0.693147181f + 2.0f * t * series;
}

// The entries are min(1, K_ij U_i V_j), where K = exp(a + rows + cols) is renewed every few rounds
// and U, V are the factors since. With the exponents of K within [-40, 20] and those of U and V
// within +-18 no product overflows; where a sum underflows to 0, its factor goes to the limit.
inline void dykstra(const float* a, float* rows, float* cols, const std::int32_t* at_most,
                    float* work, int m, int n, int iterations) {
  constexpr int kRenew = 8;
  const F32 low = F32{} - 40.0f, high = F32{} + 20.0f, one = F32{} + 1.0f;
  const F32 top = F32{} + 6.5659969e7f, bottom = one / top;  // e^18
  const F32 target = F32{} + static_cast<float>(n);
  F32 U[64], V[64], U_top[64], V_top[64], sums[64], entries[64];
  for (int part = 0; part < kLanes; part += kLanes32) {
    const I32 bounded = load<I32>(at_most + part);
    // A potential r <= 0 stays so while its factor is at most exp(-r).
    auto limit = [&](F32 r) { return bounded != 0 ? exp_lanes(min(-r, F32{} + 18.0f)) : top; };
    for (int done = 0; done < iterations; done += kRenew) {
      for (int x = 0; x < m; ++x) {
        U[x] = V[x] = one;
        U_top[x] = limit(load<F32>(rows + x * kLanes + part));
        V_top[x] = limit(load<F32>(cols + x * kLanes + part));
      }
      for (int i = 0; i < m; ++i) {
        const F32 row = load<F32>(rows + i * kLanes + part);
        for (int j = 0; j < m; ++j) {
          const int at = (i * m + j) * kLanes + part;
          const F32 y = load<F32>(a + at) + row + load<F32>(cols + j * kLanes + part);
          store(work + at, exp_lanes(min(max(y, low), high)));
        }
      }
      const int rounds = smaller(kRenew, iterations - done);
      for (int round = 0; round < rounds; ++round) {
        for (int j = 0; j < m; ++j) sums[j] = F32{};
        for (int i = 0; i < m; ++i) {
          const float* K = work + i * m * kLanes + part;
          F32 sum = F32{};
          for (int j = 0; j < m; ++j) {
            entries[j] = min(load<F32>(K + j * kLanes) * (U[i] * V[j]), one);
            sum += entries[j];
          }
          const F32 next = max(min(U[i] * (target / sum), U_top[i]), bottom);
          const F32 factor = next / U[i];
          U[i] = next;
          for (int j = 0; j < m; ++j) sums[j] += entries[j] * factor;
        }
        for (int j = 0; j < m; ++j) V[j] = max(min(V[j] * (target / sums[j]), V_top[j]), bottom);
      }
      for (int x = 0; x < m; ++x) {
        float *row = rows + x * kLanes + part, *col = cols + x * kLanes + part;
        store(row, load<F32>(row) + log_lanes(U[x]));
        store(col, load<F32>(col) + log_lanes(V[x]));
      }
    }
  }
}

// The elements of the concatenation (a, b) in turn: a0 b0 a1 b1 ..; the lower or the upper half.
template <int Half, int... K>
TP_INLINE I32 zip_half(I32 a, I32 b, std::integer_sequence<int, K...>) {
  return __builtin_shufflevector(
      a, b, (Half * kLanes32 / 2 + K / 2 + (K % 2 ? kLanes32 : 0))...);
}

// The inverse of deinterleave: out holds, one after the other, elements 0 of all vectors, then their
// elements 1, and so on. Count is a power of two.
template <int Count>
TP_INLINE void interleave(const I32* in, int stride, I32* out) {
  if constexpr (Count == 1) {
    out[0] = in[0];
  } else {
    constexpr auto kAll = std::make_integer_sequence<int, kLanes32>{};
    I32 even[Count / 2], odd[Count / 2];
    interleave<Count / 2>(in, stride * 2, even);
    interleave<Count / 2>(in + stride, stride * 2, odd);
#pragma GCC unroll 64
    for (int k = 0; k < Count / 2; ++k) {
      out[2 * k] = zip_half<0>(even[k], odd[k], kAll);
      out[2 * k + 1] = zip_half<1>(even[k], odd[k], kAll);
    }
  }
}

// A key comes before another if it is greater, or equal and earlier; each pair is compared once.
template <int M>
TP_INLINE void choose_groups(const std::int32_t* keys, int n, std::uint8_t* kept) {
  I32 in[M], x[M], before[M], words[M / 4], out[M / 4];
  for (int k = 0; k < M; ++k) in[k] = load<I32>(keys + k * kLanes32);
  deinterleave<M>(in, x, 1);
  for (int j = 0; j < M; ++j) before[j] = I32{} + j;
#pragma GCC unroll 16
  for (int k = 0; k < M; ++k)
    for (int j = k + 1; j < M; ++j) {
      const I32 later_wins = x[j] > x[k];  // 0 or -1
      before[k] -= later_wins;
      before[j] += later_wins;
    }
  for (int q = 0; q < M / 4; ++q) {  // four bytes of 0 or 1 each
    words[q] = I32{};
    for (int j = 0; j < 4; ++j) words[q] |= (before[4 * q + j] < n) & byte_one(j);
  }
  interleave<M / 4>(words, 1, out);
  for (int q = 0; q < M / 4; ++q) store(kept + q * TP_BYTES, out[q]);
}

template <int M>
void choose_fixed(const std::int32_t* keys, std::int64_t groups, int n, std::uint8_t* kept) {
  std::int64_t g = 0;
  for (; g + kLanes32 <= groups; g += kLanes32) choose_groups<M>(keys + g * M, n, kept + g * M);
  if (g == groups) return;
  const auto rest = static_cast<std::size_t>((groups - g) * M);
  std::int32_t in[kLanes32 * M] = {};
  std::uint8_t out[kLanes32 * M];
  __builtin_memcpy(in, keys + g * M, rest * sizeof(std::int32_t));
  choose_groups<M>(in, n, out);
  __builtin_memcpy(kept + g * M, out, rest);
}

inline void choose(const std::int32_t* keys, std::int64_t groups, int n, int m,
                   std::uint8_t* kept) {
  if (m == 4) return choose_fixed<4>(keys, groups, n, kept);
  if (m == 8) return choose_fixed<8>(keys, groups, n, kept);
  if (m == 16) return choose_fixed<16>(keys, groups, n, kept);
  return choose_fixed<32>(keys, groups, n, kept);
}

}  // namespace transposable::TP_ISA
