#include "lane_kernels.hpp"

#include <string_view>

#include "../isa.hpp"

namespace transposable {

extern const LaneKernels kernels_baseline;
#if defined(TRANSPOSABLE_X86)
extern const LaneKernels kernels_avx2, kernels_avx512;
#endif

const LaneKernels& lane_kernels() {
  static const LaneKernels& chosen = []() -> const LaneKernels& {
#if defined(TRANSPOSABLE_X86)
    const std::string_view isa = active_engine().name;
    if (isa == "avx512") return kernels_avx512;
    if (isa == "avx2") return kernels_avx2;
#endif
    return kernels_baseline;
  }();
  return chosen;
}

}  // namespace transposable
