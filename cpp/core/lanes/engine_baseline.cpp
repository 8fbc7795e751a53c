#define TP_ISA baseline
#define TP_BYTES 16
#include "engine.hpp"

namespace transposable {
extern const LaneEngine engine_baseline;
const LaneEngine engine_baseline{"baseline", baseline::make_solver};
}  // namespace transposable
