// Plain N:M masks: the largest n scores of every m consecutive along the rows.
#pragma once

#include <cstdint>

#include "scores.hpp"

namespace transposable {

// Ties go to the lower index. A group cut short by the edge is padded with zeros that are free:
// it keeps at most n, and no negative score.
void row_wise(const Scores& scores, int n, int m, int threads, std::uint8_t* mask);

}  // namespace transposable
