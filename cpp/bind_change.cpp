// Python binding of the replacement of a mask.
#include "bind_change.hpp"

#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>

#include "convert.hpp"
#include "core/change/change.hpp"

namespace {

using Weight = nb::ndarray<nb::ro, nb::device::cpu>;
using Written = nb::ndarray<bool, nb::device::cpu>;
using Found = nb::ndarray<const bool, nb::device::cpu>;

std::tuple<std::int64_t, double, double> change_mask(const Weight& weight, const Written& mask,
                                                     const Found& found, int threads) {
  transposable::ChangeJob job{weight.data(), dtype_of(weight.dtype()),
                              reinterpret_cast<std::uint8_t*>(mask.data()),
                              reinterpret_cast<const std::uint8_t*>(found.data()),
                              {}};
  if (mask.ndim() != weight.ndim() || found.ndim() != weight.ndim())
    throw std::invalid_argument("masks: dimensions must equal those of the weight");
  for (std::size_t k = 0; k < weight.ndim(); ++k) {
    if (mask.shape(k) != weight.shape(k) || found.shape(k) != weight.shape(k))
      throw std::invalid_argument("masks: shape must equal that of the weight");
    if (mask.size() > 0 && mask.shape(k) > 1 && mask.stride(k) == 0)
      throw std::invalid_argument("mask: entries share memory, and cannot be written");
    job.axes.push_back({static_cast<std::int64_t>(weight.shape(k)), weight.stride(k),
                        mask.stride(k), found.stride(k)});
  }
  transposable::MaskChange change;
  {
    nb::gil_scoped_release release;
    change = transposable::change_mask(job, threads);
  }
  return {change.flips, change.kept, change.total};
}

}  // namespace

void bind_change(nb::module_& module) {
  // The mask is not converted: the new one would be written to a copy and lost.
  module.def("change_mask", &change_mask, "weight"_a, "mask"_a.noconvert(), "found"_a, "threads"_a,
             "Copies found into mask; returns (flips, |weight| kept, |weight|).");
}
