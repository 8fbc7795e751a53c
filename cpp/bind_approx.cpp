// Python bindings of every solver but the exact one.
#include "bind_approx.hpp"

#include "convert.hpp"
#include "core/row_wise.hpp"

namespace {

void row_wise(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
              bool magnitude, int threads) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  transposable::row_wise(scores, n, m, threads, mask);
}

}  // namespace

void bind_approx(nb::module_& module) {
  module.def("row_wise", &row_wise, "scores"_a, "mask"_a, "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "Plain N:M masks: the largest n of every m along the rows.");
}
