#define TP_ISA baseline
#define TP_BYTES 16
#include "kernels.hpp"

namespace transposable {
extern const LaneKernels kernels_baseline;
const LaneKernels kernels_baseline{baseline::sort, baseline::exchange, baseline::dykstra,
                                   baseline::choose};
}  // namespace transposable
