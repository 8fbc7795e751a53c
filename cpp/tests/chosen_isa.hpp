// Whether the instruction set that the environment names can be tested here.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>

#include "core/isa.hpp"

constexpr int kSkipped = 77;

inline bool usable(const std::string& test) {
  const char* wanted = std::getenv("TRANSPOSABLE_ISA");
  if (!wanted) return true;
  for (const transposable::LaneEngine* engine : transposable::usable_engines())
    if (std::string(wanted) == engine->name) return true;
  std::cout << test << ": skipped, this machine does not run " << wanted << '\n';
  return false;
}
