// Pixels of images whose channels lie apart, to panels and back: no transposes. Rules of
// lanes/vec.hpp.
#pragma once

#include "../lanes/vec.hpp"
#include "kernels.hpp"
#include "panel.hpp"

namespace transposable::TP_ISA {

// The bytes [0, Bytes) and those that end where all end: both cover it, if it has Bytes to 2 Bytes.
template <int Bytes>
TP_INLINE void copy_ends(const float* from, float* to, std::int64_t count) {
  const std::int64_t second = count - Bytes / 4;
  char low[Bytes], high[Bytes];
  __builtin_memcpy(low, from, Bytes);
  __builtin_memcpy(high, from + second, Bytes);
  __builtin_memcpy(to, low, Bytes);
  __builtin_memcpy(to + second, high, Bytes);
}

// Less than a vector.
TP_INLINE void copy_few(const float* from, float* to, std::int64_t count) {
  if (count >= 8)
    copy_ends<32>(from, to, count);
  else if (count >= 4)
    copy_ends<16>(from, to, count);
  else if (count >= 2)
    copy_ends<8>(from, to, count);
  else if (count == 1)
    *to = *from;
}
TP_INLINE void copy_few(const float* from, BFloat16* to, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) put_sample(to + i, from[i]);
}

// The last vector may overlap the one before it.
template <class T>
TP_INLINE void copy(const float* from, T* to, std::int64_t count) {
  constexpr int L = kLanes32;
  if (count < L) return copy_few(from, to, count);
  for (std::int64_t i = 0; i < count - L; i += L) store_samples(to + i, load<F32>(from + i));
  store_samples(to + count - L, load<F32>(from + count - L));
}

// Which lanes a load reads; the others become zero, and nothing is read there.
#if TP_BYTES == 64
using Lanes = __mmask16;
TP_INLINE Lanes lanes_of(std::uint32_t bits) { return static_cast<Lanes>(bits); }
TP_INLINE F32 load_lanes(const float* from, Lanes lanes) {
  return reinterpret_cast<F32>(_mm512_maskz_loadu_ps(lanes, from));
}
TP_INLINE F32 load_lanes(const BFloat16* from, Lanes lanes) {
  typedef std::uint16_t Halves __attribute__((vector_size(TP_BYTES / 2)));
  typedef std::uint32_t Words __attribute__((vector_size(TP_BYTES)));
  const Halves halves = reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(lanes, from));
  return reinterpret_cast<F32>(__builtin_convertvector(halves, Words) << 16);
}
#elif TP_BYTES == 32
using Lanes = I32;
TP_INLINE Lanes lanes_of(std::uint32_t bits) {
  const I32 lane = {1, 2, 4, 8, 16, 32, 64, 128};
  return (splat<I32>(bits) & lane) != 0;
}
TP_INLINE F32 load_lanes(const float* from, Lanes lanes) {
  return reinterpret_cast<F32>(_mm256_maskload_ps(from, reinterpret_cast<__m256i>(lanes)));
}
TP_INLINE F32 load_lanes(const BFloat16* from, Lanes lanes) {
  F32 found{};
  for (int l = 0; l < kLanes32; ++l)
    if (lanes[l]) found[l] = sample(from + l);
  return found;
}
#else
using Lanes = std::uint32_t;
TP_INLINE Lanes lanes_of(std::uint32_t bits) { return bits; }
template <class T>
TP_INLINE F32 load_lanes(const T* from, Lanes lanes) {
  F32 found{};
  for (int l = 0; l < kLanes32; ++l)
    if (lanes >> l & 1) found[l] = sample(from + l);
  return found;
}
#endif

// Lanes `step` apart.
template <class T>
TP_INLINE F32 collect_lanes(const T* from, std::uint32_t lanes, std::int64_t step) {
  F32 found{};
  for (int l = 0; l < kLanes32; ++l)
    if (lanes >> l & 1) found[l] = sample(from + l * step);
  return found;
}

template <class T>
void pack_planes(const PixelPlanes& x, const LanePixels* pixels, std::int64_t count,
                 std::int64_t channels, float* panel, std::int64_t width, std::int64_t stride) {
  constexpr std::int64_t L = kLanes32, few = 16;
  constexpr std::uint32_t all = (std::uint32_t{1} << L) - 1;
  const std::int64_t apart = x.channel_stride, step = x.step;
  // A few channels at a time, so that their cache lines are at hand for the next vector.
  for (std::int64_t c = 0; c < channels; c += few) {
    const T* from = static_cast<const T*>(x.data) + c * apart;
    const std::int64_t some = channels - c < few ? channels - c : few;
    const LanePixels *next = pixels, *const end = pixels + count;
    for (std::int64_t v = 0; v < width / L; ++v) {
      float* to = panel + c * stride + v * L;
      const LanePixels* const first = next;
      while (next < end && next->vector == v) ++next;
      if (next - first == 1 && step == 1) {
        const T* at = from + first->offset;
        if (first->lanes == all) {
          for (std::int64_t i = 0; i < some; ++i, at += apart, to += stride) store(to, load_floats(at));
        } else {
          const Lanes lanes = lanes_of(first->lanes);
          for (std::int64_t i = 0; i < some; ++i, at += apart, to += stride)
            store(to, load_lanes(at, lanes));
        }
      } else {
        for (std::int64_t i = 0; i < some; ++i, to += stride) {
          I32 found{};
          for (const LanePixels* p = first; p < next; ++p) {
            const T* at = from + p->offset + i * apart;
            found |= reinterpret_cast<I32>(step == 1 ? load_lanes(at, lanes_of(p->lanes))
                                                     : collect_lanes(at, p->lanes, step));
          }
          store(to, found);
        }
      }
    }
  }
}

inline void pack_pixels(const PixelPlanes& x, const LanePixels* pixels, std::int64_t count,
                        std::int64_t channels, float* panel, std::int64_t width,
                        std::int64_t stride) {
  if (x.dtype == DType::bf16)
    pack_planes<BFloat16>(x, pixels, count, channels, panel, width, stride);
  else
    pack_planes<float>(x, pixels, count, channels, panel, width, stride);
}

template <class T>
void unpack_planes(const float* panel, std::int64_t width, const PixelPiece* pieces,
                   std::int64_t count, std::int64_t channels, const OutputPlanes& y) {
  T* to = static_cast<T*>(y.data);
  for (std::int64_t c = 0; c < channels; ++c, panel += width, to += y.channel_stride)
    for (std::int64_t p = 0; p < count; ++p)
      copy(panel + pieces[p].place, to + pieces[p].offset, pieces[p].count);
}

inline void unpack_pixels(const float* panel, std::int64_t width, const PixelPiece* pieces,
                          std::int64_t count, std::int64_t channels, const OutputPlanes& y) {
  if (y.dtype == DType::bf16)
    unpack_planes<BFloat16>(panel, width, pieces, count, channels, y);
  else
    unpack_planes<float>(panel, width, pieces, count, channels, y);
}

}  // namespace transposable::TP_ISA
