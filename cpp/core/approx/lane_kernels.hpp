// Kernels that work on many tiles at once, one lane each, in loops that a compiler vectorises.
//
// The same source (kernels.hpp) is compiled for each instruction set, as the engine of the exact
// solver is; the choice between them is the same, too (isa.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace transposable {

inline constexpr int kLanes = 16;     // tiles of a block
inline constexpr int kSortLanes = 8;  // of them, in one sorting network

struct LaneKernels {
  // Sorts count keys of kSortLanes tiles, ascending: keys[position * kSortLanes + lane].
  void (*sort)(double* keys, int count);

  // One sweep over all pairs of rows (i, k) of m x m tiles: where the best exchange of a column
  // kept by i alone for one kept by k alone gains, it is made. a and kept (0 or -1) are indexed
  // [(i * m + j) * kLanes + lane]. Returns whether any tile changed.
  bool (*exchange)(const float* a, std::int32_t* kept, int m);

  // Dykstra's alternating KL projections of exp(a) on row sums n, column sums n and entries <= 1.
  // rows, cols: log-potentials [line * kLanes + lane], in and out; work: m * m * kLanes floats.
  // Where at_most[lane] is set the sums are at most n, and the potentials stay <= 0.
  void (*dykstra)(const float* a, float* rows, float* cols, const std::int32_t* at_most,
                  float* work, int m, int n, int iterations);

  // kept[g * m + j] = 1 where fewer than n of the group keys[g * m .. + m] come before entry j,
  // else 0. m is 4, 8, 16 or 32.
  void (*choose)(const std::int32_t* keys, std::int64_t groups, int n, int m, std::uint8_t* kept);
};

// Of the active instruction set; throws as active_engine() does.
const LaneKernels& lane_kernels();

// Uninitialised memory at the start of a cache line.
template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(std::size_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), kAlign))) {}
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace transposable
