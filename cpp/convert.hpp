// Python arrays as views for the core. Arguments are checked in Python, shapes and dtypes again here.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>

#include "core/scores.hpp"

namespace nb = nanobind;
using namespace nb::literals;

using ScoresArray = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using MaskArray = nb::ndarray<bool, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Potentials = nb::ndarray<double, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

inline transposable::DType dtype_of(nb::dlpack::dtype dtype) {
  using transposable::DType;
  using Code = nb::dlpack::dtype_code;
  if (dtype == nb::dtype<float>()) return DType::f32;
  if (dtype == nb::dtype<double>()) return DType::f64;
  if (dtype == nb::dlpack::dtype{static_cast<std::uint8_t>(Code::Float), 16, 1}) return DType::f16;
  if (dtype == nb::dlpack::dtype{static_cast<std::uint8_t>(Code::Bfloat), 16, 1}) return DType::bf16;
  throw std::invalid_argument("scores: dtype must be float32, float64, float16 or bfloat16");
}

inline transposable::Scores scores_of(const ScoresArray& array, bool magnitude) {
  return {array.data(),
          dtype_of(array.dtype()),
          static_cast<std::int64_t>(array.shape(0)),
          static_cast<std::int64_t>(array.shape(1)),
          static_cast<std::int64_t>(array.shape(2)),
          array.stride(0),
          array.stride(1),
          array.stride(2),
          magnitude};
}

inline std::uint8_t* mask_of(const MaskArray& mask, const transposable::Scores& scores) {
  if (static_cast<std::int64_t>(mask.shape(0)) != scores.batch ||
      static_cast<std::int64_t>(mask.shape(1)) != scores.rows ||
      static_cast<std::int64_t>(mask.shape(2)) != scores.cols)
    throw std::invalid_argument("mask: shape must equal that of the scores");
  return reinterpret_cast<std::uint8_t*>(mask.data());
}

inline void check_pattern(int n, int m) {
  if (n < 1 || n >= m || m > 64) throw std::invalid_argument("pattern: 1 <= n < m <= 64 is needed");
}

inline double* potentials_of(const std::optional<Potentials>& array, const transposable::Scores& scores,
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
