#define TP_ISA baseline
#define TP_BYTES 16
#include "gradient.hpp"
#include "multiply.hpp"
#include "panel.hpp"
#include "peak.hpp"
#include "pixels.hpp"

namespace transposable {
extern const SparseKernels sparse_kernels_baseline;
const SparseKernels sparse_kernels_baseline = {"baseline",
                                              baseline::kLanes32,
                                              baseline::kVectors4,
                                              baseline::kVectors8,
                                              baseline::multiply,
                                              baseline::pack,
                                              baseline::unpack,
                                              baseline::pack_gathered,
                                              baseline::pack_pixels,
                                              baseline::unpack_pixels,
                                              baseline::gradient,
                                              baseline::multiply_adds};
}  // namespace transposable
