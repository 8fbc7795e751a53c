#define TP_ISA avx512
#define TP_BYTES 64
#include "kernels.hpp"

namespace transposable {
extern const LaneKernels kernels_avx512;
const LaneKernels kernels_avx512{avx512::sort, avx512::exchange, avx512::dykstra, avx512::choose};
}  // namespace transposable
