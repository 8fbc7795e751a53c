#define TP_ISA avx2
#define TP_BYTES 32
#include "kernels.hpp"

namespace transposable {
extern const ChangeRun change_run_avx2;
const ChangeRun change_run_avx2 = avx2::change_run;
}  // namespace transposable
