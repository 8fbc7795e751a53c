#define TP_ISA avx2
#define TP_BYTES 32
#include "gradient.hpp"
#include "multiply.hpp"
#include "panel.hpp"
#include "peak.hpp"
#include "pixels.hpp"

namespace transposable {
extern const SparseKernels sparse_kernels_avx2;
const SparseKernels sparse_kernels_avx2 = {"avx2",
                                              avx2::kLanes32,
                                              avx2::kVectors4,
                                              avx2::kVectors8,
                                              avx2::multiply,
                                              avx2::pack,
                                              avx2::unpack,
                                              avx2::pack_gathered,
                                              avx2::pack_pixels,
                                              avx2::unpack_pixels,
                                              avx2::gradient,
                                              avx2::multiply_adds};
}  // namespace transposable
