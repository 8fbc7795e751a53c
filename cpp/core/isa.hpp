// Which instruction sets this build and this machine offer, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "lanes/job.hpp"

namespace transposable {

// Usable engines, the best first. "baseline" is always there.
std::vector<const LaneEngine*> usable_engines();

// The engine named by the environment variable TRANSPOSABLE_ISA, else the best; read once.
// Throws std::invalid_argument when the variable names none that this machine can run.
const LaneEngine& active_engine();

}  // namespace transposable
