#include "isa.hpp"

#include <cstdlib>
#include <stdexcept>

namespace transposable {

extern const LaneEngine engine_baseline;
#if defined(TRANSPOSABLE_X86)
extern const LaneEngine engine_avx2, engine_avx512;
#endif

std::vector<const LaneEngine*> usable_engines() {
  std::vector<const LaneEngine*> engines;
#if defined(TRANSPOSABLE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    engines.push_back(&engine_avx512);
  if (avx2) engines.push_back(&engine_avx2);
#endif
  engines.push_back(&engine_baseline);
  return engines;
}

const LaneEngine& active_engine() {
  static const LaneEngine* const chosen = [] {
    const auto engines = usable_engines();
    const char* wanted = std::getenv("TRANSPOSABLE_ISA");
    if (!wanted || !*wanted) return engines.front();
    std::string names;
    for (const LaneEngine* engine : engines) {
      if (std::string(wanted) == engine->name) return engine;
      names += std::string(names.empty() ? "" : ", ") + engine->name;
    }
    throw std::invalid_argument("TRANSPOSABLE_ISA=" + std::string(wanted) +
                                ": this machine runs " + names + "; name one of them or unset it");
  }();
  return *chosen;
}

}  // namespace transposable
