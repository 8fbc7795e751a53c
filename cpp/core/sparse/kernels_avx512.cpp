#define TP_ISA avx512
#define TP_BYTES 64
#include "gradient.hpp"
#include "multiply.hpp"
#include "panel.hpp"
#include "peak.hpp"
#include "pixels.hpp"

namespace transposable {
extern const SparseKernels sparse_kernels_avx512;
const SparseKernels sparse_kernels_avx512 = {"avx512",
                                              avx512::kLanes32,
                                              avx512::kVectors4,
                                              avx512::kVectors8,
                                              avx512::multiply,
                                              avx512::pack,
                                              avx512::unpack,
                                              avx512::pack_gathered,
                                              avx512::pack_pixels,
                                              avx512::unpack_pixels,
                                              avx512::gradient,
                                              avx512::multiply_adds};
}  // namespace transposable
