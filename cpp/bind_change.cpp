// Python binding of the comparison of masks.
#include "bind_change.hpp"

#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>

#include "convert.hpp"
#include "core/change/change.hpp"

namespace {

using Weight = nb::ndarray<nb::ro, nb::device::cpu>;
using AnyMask = nb::ndarray<const bool, nb::device::cpu>;

std::tuple<std::int64_t, double, double> compare_masks(const Weight& weight, const AnyMask& mask,
                                                       const AnyMask& found, int threads) {
  transposable::ChangeJob job{weight.data(), dtype_of(weight.dtype()),
                              reinterpret_cast<const std::uint8_t*>(mask.data()),
                              reinterpret_cast<const std::uint8_t*>(found.data()),
                              {}};
  if (mask.ndim() != weight.ndim() || found.ndim() != weight.ndim())
    throw std::invalid_argument("masks: dimensions must equal those of the weight");
  for (std::size_t k = 0; k < weight.ndim(); ++k) {
    if (mask.shape(k) != weight.shape(k) || found.shape(k) != weight.shape(k))
      throw std::invalid_argument("masks: shape must equal that of the weight");
    job.axes.push_back({static_cast<std::int64_t>(weight.shape(k)), weight.stride(k),
                        mask.stride(k), found.stride(k)});
  }
  transposable::MaskChange change;
  {
    nb::gil_scoped_release release;
    change = transposable::compare_masks(job, threads);
  }
  return {change.flips, change.kept, change.total};
}

}  // namespace

void bind_change(nb::module_& module) {
  module.def("compare_masks", &compare_masks, "weight"_a, "mask"_a, "found"_a, "threads"_a,
             "(entries that differ, |weight| that found keeps, all |weight|).");
}
