// compare_masks on elements that lie one after the other. Included by kernels_*.cpp only, with TP_ISA
// and TP_BYTES set; the rules of lanes/vec.hpp hold.
#pragma once

#include "../lanes/vec.hpp"
#include "run.hpp"

namespace transposable::TP_ISA {

typedef double F64 __attribute__((vector_size(TP_BYTES)));

struct Float16 {
  std::uint16_t bits;
};

TP_INLINE F32 magnitudes(I32 bits) { return reinterpret_cast<F32>(bits & 0x7fffffff); }

TP_INLINE F32 load_magnitudes(const float* from) { return magnitudes(load<I32>(from)); }
TP_INLINE F32 load_magnitudes(const BFloat16* from) {
  return magnitudes(reinterpret_cast<I32>(load_floats(from)));
}
// As f16_to_float in scores.hpp.
TP_INLINE F32 load_magnitudes(const Float16* from) {
  typedef std::uint16_t Halves __attribute__((vector_size(TP_BYTES / 2)));
  const I32 rest = __builtin_convertvector(load<Halves>(from), I32) & 0x7fff;
  const F32 finite = reinterpret_cast<F32>(rest << 13) * 0x1p112f;
  const I32 special = (rest & 0x3ff) << 13 | 0x7f800000;
  return rest >= 0x7c00 ? reinterpret_cast<F32>(special) : finite;
}

// Sums of one run, a lane each.
struct LaneSums {
  I32 flips{};
  F64 kept[2]{}, total[2]{};

  // kLanes32 elements; now and before hold 0 or 1.
  TP_INLINE void add(F32 magnitude, I32 now, I32 before) {
    typedef float Half __attribute__((vector_size(TP_BYTES / 2)));
    const F32 held = reinterpret_cast<F32>(reinterpret_cast<I32>(magnitude) & -now);
    Half all[2], some[2];
    __builtin_memcpy(all, &magnitude, sizeof all);
    __builtin_memcpy(some, &held, sizeof some);
    for (int k = 0; k < 2; ++k) {
      total[k] += __builtin_convertvector(all[k], F64);
      kept[k] += __builtin_convertvector(some[k], F64);
    }
    flips += now ^ before;
  }
};

template <class T>
TP_INLINE void take(const T* weight, I32 now, I32 before, LaneSums& sums) {
  sums.add(load_magnitudes(weight), now, before);
}
TP_INLINE void take(const double* weight, I32 now, I32 before, LaneSums& sums) {
  typedef std::int64_t I64 __attribute__((vector_size(TP_BYTES)));
  typedef std::int32_t Half __attribute__((vector_size(TP_BYTES / 2)));
  Half kept[2];
  __builtin_memcpy(kept, &now, sizeof kept);
  for (int k = 0; k < 2; ++k) {
    const I64 bits = load<I64>(weight + k * kLanes32 / 2) & 0x7fffffffffffffff;
    sums.total[k] += reinterpret_cast<F64>(bits);
    sums.kept[k] += reinterpret_cast<F64>(bits & -__builtin_convertvector(kept[k], I64));
  }
  sums.flips += now ^ before;
}

// kLanes32 bytes as 32-bit lanes, by way of 16 bits: compilers make a loop of the direct way.
TP_INLINE I32 load_bytes(const std::uint8_t* from) {
  typedef std::uint8_t Bytes __attribute__((vector_size(TP_BYTES / 4)));
  typedef std::uint16_t Halves __attribute__((vector_size(TP_BYTES / 2)));
  return __builtin_convertvector(__builtin_convertvector(load<Bytes>(from), Halves), I32);
}

template <class T>
TP_INLINE void run(const T* weight, const std::uint8_t* mask, const std::uint8_t* found,
                   int count, MaskChange& sums) {
  LaneSums lanes;
  auto step = [&](const T* from, const std::uint8_t* now,
                  const std::uint8_t* before) __attribute__((always_inline)) {
    take(from, load_bytes(now), load_bytes(before), lanes);
  };
  int c = 0;
  for (; c + kLanes32 <= count; c += kLanes32) step(weight + c, found + c, mask + c);
  if (c < count) {  // the rest, filled up with weights of 0 that do not flip
    const auto rest = static_cast<unsigned>(count - c);
    T last[kLanes32] = {};
    std::uint8_t now[kLanes32] = {}, before[kLanes32] = {};
    __builtin_memcpy(last, weight + c, rest * sizeof(T));
    __builtin_memcpy(now, found + c, rest);
    __builtin_memcpy(before, mask + c, rest);
    step(last, now, before);
  }
  sums.flips += reduce_add(lanes.flips);
  sums.kept += reduce_add(lanes.kept[0] + lanes.kept[1]);
  sums.total += reduce_add(lanes.total[0] + lanes.total[1]);
}

inline void change_run(const void* weight, DType dtype, const std::uint8_t* mask,
                       const std::uint8_t* found, int count, MaskChange& sums) {
  switch (dtype) {
    case DType::f32: return run(static_cast<const float*>(weight), mask, found, count, sums);
    case DType::f64: return run(static_cast<const double*>(weight), mask, found, count, sums);
    case DType::f16: return run(static_cast<const Float16*>(weight), mask, found, count, sums);
    case DType::bf16: return run(static_cast<const BFloat16*>(weight), mask, found, count, sums);
  }
}

}  // namespace transposable::TP_ISA
