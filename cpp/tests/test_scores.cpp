// 16-bit floats to float, on all 65,536 inputs, against their definition; strides and magnitude.
#include "core/scores.hpp"

#include <cmath>
#include <cstdint>

#include "check.hpp"

namespace {

using namespace transposable;

// sign, exponent and fraction by the book, in arithmetic: no bit tricks shared with the code.
double defined_value(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int exponent_mask = (1 << exponent_bits) - 1;
  const int exponent = (bits >> fraction_bits) & exponent_mask;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int bias = exponent_mask / 2;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == exponent_mask) return fraction ? NAN : sign * INFINITY;
  const double unit = std::ldexp(1.0, -fraction_bits);
  if (exponent == 0) return sign * std::ldexp(fraction * unit, 1 - bias);
  return sign * std::ldexp(1 + fraction * unit, exponent - bias);
}

void conversions() {
  for (int i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double half = defined_value(bits, 5, 10), brain = defined_value(bits, 8, 7);
    if (std::isnan(half)) {
      CHECK(std::isnan(f16_to_float(bits)));
    } else {
      CHECK_EQUAL(f16_to_float(bits), half);
      CHECK_EQUAL(std::signbit(f16_to_float(bits)), std::signbit(half));
    }
    if (std::isnan(brain)) {
      CHECK(std::isnan(bf16_to_float(bits)));
    } else {
      CHECK_EQUAL(bf16_to_float(bits), brain);
      CHECK_EQUAL(std::signbit(bf16_to_float(bits)), std::signbit(brain));
    }
  }
}

void strides() {
  double data[2 * 3 * 4];
  for (int i = 0; i < 24; ++i) data[i] = i % 2 ? -i : i;
  // A transposed view, walked backwards along its columns.
  const Scores view{data + 8, DType::f64, 2, 4, 3, 12, 1, -4, true};
  for (int b = 0; b < 2; ++b)
    for (int r = 0; r < 4; ++r)
      for (int c = 0; c < 3; ++c) {
        const double expected = data[b * 12 + (2 - c) * 4 + r];
        CHECK_EQUAL(view.raw(b, r, c), expected);
        CHECK_EQUAL(view.at(b, r, c), std::fabs(expected));
      }
}

}  // namespace

int main() {
  conversions();
  strides();
  return check::result("test_scores");
}
