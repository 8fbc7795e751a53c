#define TP_ISA avx2
#define TP_BYTES 32
#include "engine.hpp"

namespace transposable {
extern const LaneEngine engine_avx2;
const LaneEngine engine_avx2{"avx2", avx2::make_solver};
}  // namespace transposable
