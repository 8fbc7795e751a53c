// Python bindings of every solver but the exact one.
#include "bind_approx.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "convert.hpp"
#include "core/approx/entropic.hpp"
#include "core/approx/greedy.hpp"
#include "core/approx/two_approx.hpp"
#include "core/row_wise.hpp"

namespace {

std::optional<std::tuple<std::int64_t, std::int64_t, std::int64_t>> row_wise(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
                    bool magnitude, int threads) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  std::optional<transposable::NanPlace> nan;
  {
    nb::gil_scoped_release release;
    nan = transposable::row_wise(scores, n, m, threads, mask);
  }
  if (!nan) return std::nullopt;
  return std::make_tuple(nan->batch, nan->row, nan->col);
}

void two_approx(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
                bool magnitude, int threads, bool repair) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  transposable::two_approx(scores, n, m, repair, threads, mask);
}

void greedy(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
            bool magnitude, int threads, bool repair, int sweeps) {
  check_pattern(n, m);
  if (sweeps < 0) throw std::invalid_argument("sweeps: must not be negative");
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  transposable::greedy(scores, n, m, repair, sweeps, threads, mask);
}

void entropic(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
              bool magnitude, int threads, int iterations, float tau, int sweeps) {
  check_pattern(n, m);
  if (iterations < 1 || !(tau > 0) || sweeps < 0)
    throw std::invalid_argument("entropic: iterations >= 1, tau > 0 and sweeps >= 0 are needed");
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  transposable::entropic(scores, n, m, {iterations, tau, sweeps}, threads, mask);
}

}  // namespace

void bind_approx(nb::module_& module) {
  // Masks are not converted: the results would be written to a copy and lost.
  module.def("row_wise", &row_wise, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "Plain N:M masks; returns None, or the place of a NaN.");
  module.def("two_approx", &two_approx, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a,
             "magnitude"_a, "threads"_a, "repair"_a,
             "The paper's Algorithm 1: at most n, exactly n if repaired.");
  module.def("greedy", &greedy, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "repair"_a, "sweeps"_a, "Heavy scores first, repair, local search.");
  module.def("entropic", &entropic, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "iterations"_a, "tau"_a, "sweeps"_a,
             "Dykstra's projections, rounding, repair, local search.");
}
