#include "lanes.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>

// GCC and Clang on x86 compile a function for another instruction set than the file's. Elsewhere
// (ARM: NEON is the baseline) one version is enough.
#if defined(__x86_64__) && defined(__GNUC__)
#define TRANSPOSABLE_X86_VERSIONS 1
#endif

// Vectors pass only between functions that are inlined, so their calling convention is no concern.
#define TRANSPOSABLE_INLINE __attribute__((always_inline)) inline
#pragma GCC diagnostic ignored "-Wpsabi"

namespace transposable {

namespace {

constexpr int kByteShift[4] = {std::endian::native == std::endian::little ? 0 : 24,
                               std::endian::native == std::endian::little ? 8 : 16,
                               std::endian::native == std::endian::little ? 16 : 8,
                               std::endian::native == std::endian::little ? 24 : 0};

namespace baseline {
#define TRANSPOSABLE_VECTOR_BYTES 16
#define TRANSPOSABLE_ISA_NAME "baseline"
#include "lane_kernels.inc"
}  // namespace baseline

#ifdef TRANSPOSABLE_X86_VERSIONS

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define TRANSPOSABLE_VECTOR_BYTES 32
#define TRANSPOSABLE_ISA_NAME "avx2"
#include "lane_kernels.inc"
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
namespace avx512 {
#define TRANSPOSABLE_VECTOR_BYTES 64
#define TRANSPOSABLE_ISA_NAME "avx512"
#include "lane_kernels.inc"
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

const LaneKernels& choose_kernels() {
#ifdef TRANSPOSABLE_X86_VERSIONS
  const char* variable = std::getenv("TRANSPOSABLE_ISA");
  const std::string_view asked = variable ? variable : "";
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (asked != "baseline") {
    if (has_avx512 && asked != "avx2") return avx512::kernels;
    if (has_avx2) return avx2::kernels;
  }
#endif
  return baseline::kernels;
}

}  // namespace

const LaneKernels& lane_kernels() {
  static const LaneKernels& chosen = choose_kernels();
  return chosen;
}

}  // namespace transposable
