#include <algorithm>
#include <chrono>
#include <string_view>

#include "../isa.hpp"
#include "matmul.hpp"

namespace transposable {

extern const SparseKernels sparse_kernels_baseline;
#if defined(TRANSPOSABLE_X86)
extern const SparseKernels sparse_kernels_avx2, sparse_kernels_avx512;
#endif

const SparseKernels& active_sparse_kernels() {
#if defined(TRANSPOSABLE_X86)
  const std::string_view isa = active_engine().name;
  if (isa == "avx512") return sparse_kernels_avx512;
  if (isa == "avx2") return sparse_kernels_avx2;
#endif
  return sparse_kernels_baseline;
}

double peak_gflops(double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = 0;
  do {
    float sums[64];
    const auto start = Clock::now();
    const double operations = active_sparse_kernels().multiply_adds(200000, sums);
    best = std::max(best, operations / since(start) / 1e9);
  } while (since(begin) < seconds);
  return best;
}

std::pair<int, int> stream_blocking(int m) {
  // Blocks of 8 rows reuse a sample more often, but from M = 16 on nearly all their 255 types occur,
  // each too rarely for its loop. Long blocks have long runs, whose ends are foreseen more often; with
  // the few types of 4 rows runs are long anyway, and a short block keeps its samples in the L1 cache.
  if (active_sparse_kernels().vectors8 == 1) return {4, 256};
  if (m >= 16) return {4, 128};
  return {8, 2048};
}

}  // namespace transposable
