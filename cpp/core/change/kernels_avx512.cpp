#define TP_ISA avx512
#define TP_BYTES 64
#include "kernels.hpp"

namespace transposable {
extern const ChangeRun change_run_avx512;
const ChangeRun change_run_avx512 = avx512::change_run;
}  // namespace transposable
