#define TP_ISA avx2
#define TP_BYTES 32
#include "kernels.hpp"

namespace transposable {
extern const LaneKernels kernels_avx2;
const LaneKernels kernels_avx2{avx2::sort, avx2::exchange, avx2::dykstra, avx2::choose};
}  // namespace transposable
