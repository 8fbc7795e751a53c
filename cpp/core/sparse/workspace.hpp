// Memory for panels, sums and results.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace transposable {

struct FreeFloats {
  void operator()(float* p) const { std::free(p); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

// A hint for memory about to be written: large arrays are mostly fresh, and to be given their pages
// one by one takes a third of the time of a product that fills them.
inline void prefer_huge_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t large = 4 << 20, page = 4 << 10;
  if (bytes < large) return;
  const std::uintptr_t from = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const std::uintptr_t end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(from), end - from, MADV_HUGEPAGE);  // may be refused, which is fine
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

inline Floats floats(std::int64_t count) {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, std::max<std::size_t>(bytes, 64));
  if (!p) throw std::bad_alloc();
  prefer_huge_pages(p, bytes);
  return Floats(static_cast<float*>(p));
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace transposable
