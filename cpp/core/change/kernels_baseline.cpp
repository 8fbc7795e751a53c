#define TP_ISA baseline
#define TP_BYTES 16
#include "kernels.hpp"

namespace transposable {
extern const ChangeRun change_run_baseline;
const ChangeRun change_run_baseline = baseline::change_run;
}  // namespace transposable
