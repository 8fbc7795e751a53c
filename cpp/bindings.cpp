// Python bindings: conversions only. Arguments are checked in Python, shapes and dtypes again here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "core/exact.hpp"
#include "core/isa.hpp"
#include "core/row_wise.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using ScoresArray = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using MaskArray = nb::ndarray<bool, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Potentials = nb::ndarray<double, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

transposable::Scores scores_of(const ScoresArray& array, bool magnitude) {
  using transposable::DType;
  DType dtype;
  if (array.dtype() == nb::dtype<float>())
    dtype = DType::f32;
  else if (array.dtype() == nb::dtype<double>())
    dtype = DType::f64;
  else if (array.dtype() == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float), 16, 1})
    dtype = DType::f16;
  else if (array.dtype() == nb::dlpack::dtype{static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat), 16, 1})
    dtype = DType::bf16;
  else
    throw std::invalid_argument("scores: dtype must be float32, float64, float16 or bfloat16");
  return {array.data(),
          dtype,
          static_cast<std::int64_t>(array.shape(0)),
          static_cast<std::int64_t>(array.shape(1)),
          static_cast<std::int64_t>(array.shape(2)),
          array.stride(0),
          array.stride(1),
          array.stride(2),
          magnitude};
}

std::uint8_t* mask_of(const MaskArray& mask, const transposable::Scores& scores) {
  if (static_cast<std::int64_t>(mask.shape(0)) != scores.batch ||
      static_cast<std::int64_t>(mask.shape(1)) != scores.rows ||
      static_cast<std::int64_t>(mask.shape(2)) != scores.cols)
    throw std::invalid_argument("mask: shape must equal that of the scores");
  return reinterpret_cast<std::uint8_t*>(mask.data());
}

void check_pattern(int n, int m) {
  if (n < 1 || n >= m || m > 64) throw std::invalid_argument("pattern: 1 <= n < m <= 64 is needed");
}

double* potentials_of(const std::optional<Potentials>& array, const transposable::Scores& scores,
                      int m) {
  if (!array) return nullptr;
  const std::int64_t down = (scores.rows + m - 1) / m, across = (scores.cols + m - 1) / m;
  if (static_cast<std::int64_t>(array->shape(0)) != scores.batch ||
      static_cast<std::int64_t>(array->shape(1)) != down ||
      static_cast<std::int64_t>(array->shape(2)) != across ||
      static_cast<std::int64_t>(array->shape(3)) != m)
    throw std::invalid_argument("potentials: shape must be [batch, down, across, m]");
  return array->data();
}

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

void row_wise(const ScoresArray& scores_array, const MaskArray& mask_array, int n, int m,
              bool magnitude, int threads) {
  check_pattern(n, m);
  const auto scores = scores_of(scores_array, magnitude);
  auto* mask = mask_of(mask_array, scores);
  nb::gil_scoped_release release;
  transposable::row_wise(scores, n, m, threads, mask);
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "Native core: solvers on spans, no Python inside.";
  // Outputs are not converted: the results would be written to a copy and lost.
  module.def("exact", &exact, "scores"_a, "mask"_a.noconvert(), "n"_a, "m"_a, "magnitude"_a, "threads"_a,
             "u"_a.none().noconvert() = nb::none(), "v"_a.none().noconvert() = nb::none(),
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
  module.def("row_wise", &row_wise, "scores"_a, "mask"_a, "n"_a, "m"_a, "magnitude"_a,
             "threads"_a, "Plain N:M masks: the largest n of every m along the rows.");
}
