#define TP_ISA avx512
#define TP_BYTES 64
#include "engine.hpp"

namespace transposable {
extern const LaneEngine engine_avx512;
const LaneEngine engine_avx512{"avx512", avx512::make_solver};
}  // namespace transposable
