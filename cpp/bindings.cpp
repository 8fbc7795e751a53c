// Python bindings of the exact solver and of the objective; each file bind_*.cpp adds its own.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bind_approx.hpp"
#include "bind_change.hpp"
#include "bind_sparse.hpp"
#include "convert.hpp"
#include "core/exact.hpp"
#include "core/isa.hpp"

namespace {

nb::dict exact(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
               bool magnitude, int threads, const std::optional<Potentials>& u,
               const std::optional<Potentials>& v) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  auto *pu = potentials_of(u, scores, m), *pv = potentials_of(v, scores, m);
  if (!pu != !pv) throw std::invalid_argument("potentials: give both or none");
  transposable::ExactStats stats;
  {
    nb::gil_scoped_release release;
    stats = transposable::solve_exact(scores, {n, m, threads}, mask, pu, pv);
  }
  nb::dict result;
  result["tiles"] = stats.tiles;
  result["wave"] = stats.wave;
  result["compacted"] = stats.compacted;
  result["ties"] = stats.ties;
  result["paths"] = stats.paths;
  result["wide"] = stats.wide;
  result["cropped"] = stats.cropped;
  if (stats.nan)
    result["nan_at"] = nb::make_tuple(stats.nan->batch, stats.nan->row, stats.nan->col);
  return result;
}

nb::tuple dual_bound(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
                     bool magnitude, int threads, const Potentials& u, const Potentials& v) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  const auto* mask = mask_of(mask_array, scores);
  const auto *pu = potentials_of(u, scores, m), *pv = potentials_of(v, scores, m);
  transposable::DualBound bound;
  {
    nb::gil_scoped_release release;
    bound = transposable::dual_bound(scores, n, m, threads, mask, pu, pv);
  }
  return nb::make_tuple(bound.value, bound.worst_gap);
}

double kept_sum(const ScoresArray& scores_array, const MaskArray& mask_array, bool magnitude,
                int threads) {
  const auto scores = scores_of(scores_array, magnitude);
  const auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  return transposable::kept_sum(scores, threads, mask);
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "Native core: solvers on spans, no Python inside.";
  // Outputs are not converted: the results would be written to a copy and lost.
  module.def("exact", &exact, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "u"_a.none().noconvert() = nb::none(),
             "v"_a.none().noconvert() = nb::none(),
             "Optimal transposable masks; fills mask, u and v; returns statistics.");
  module.def("dual_bound", &dual_bound, "scores"_a, "mask"_a, "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "u"_a, "v"_a, "(dual value, worst relative gap of a tile).");
  module.def("kept_sum", &kept_sum, "scores"_a, "mask"_a, "magnitude"_a, "threads"_a,
             "Sum of the kept scores, in double precision.");
  module.def("isa", [] { return std::string(transposable::active_engine().name); },
             "The instruction set in use; TRANSPOSABLE_ISA overrides the best one.");
  module.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const auto* engine : transposable::usable_engines()) names.emplace_back(engine->name);
        return names;
      },
      "The instruction sets that this machine can run, best first.");
  bind_approx(module);
  bind_change(module);
  bind_sparse(module);
}
