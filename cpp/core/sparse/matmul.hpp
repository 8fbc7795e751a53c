// Products of a compressed matrix with samples, on a few threads.
#pragma once

#include <utility>

#include "kernels.hpp"
#include "order.hpp"
#include "samples.hpp"
#include "stream.hpp"

namespace transposable {

// y[t, r] = sum_c A[r, c] x[t, c] + bias[r] for `samples` samples t; bias may be null. Sums are
// in float, in the order of the stream; they depend neither on the number of threads nor of samples.
void stream_matmul(const StreamView& stream, const void* values, DType dtype, const SampleSource& x,
                   const float* bias, const SampleSink& y, std::int64_t samples, int threads);

// out[r, c] = sum_t dy[t, r] x[t, c] where kept and 0 elsewhere; out is [rows, cols], contiguous. The
// order is that of the stream, gradient_order.
void weight_gradient(const GradientColumns& order, std::int64_t rows, std::int64_t cols,
                     const SampleSource& x, const SampleSource& dy, std::int64_t samples, float* out,
                     int threads);

// Floating-point operations a second, in units of 1e9, that one thread reaches on numbers in registers:
// the most of several tries within about so many seconds.
double peak_gflops(double seconds);

// Rows and columns of a block that suit groups of M on the instruction set in use.
std::pair<int, int> stream_blocking(int m);

}  // namespace transposable
