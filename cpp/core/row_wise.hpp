// Plain N:M masks: the largest n scores of every m consecutive along the rows.
#pragma once

#include <cstdint>
#include <optional>

#include "exact.hpp"
#include "scores.hpp"

namespace transposable {

// Ties go to the lower index. A group cut short by the edge is padded with zeros that are free:
// it keeps at most n, and no negative score. A NaN is returned, and then nothing of the mask may be
// used.
std::optional<NanPlace> row_wise(const Scores& scores, int n, int m, int threads, std::uint8_t* mask);

}  // namespace transposable
