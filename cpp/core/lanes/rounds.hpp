// Which compiled half rounds serve a pattern, and how many of them are run.
#pragma once

#include "dual16.hpp"

namespace transposable::TP_ISA {

// The 16-bit rounds, compiled for one N or for any.
template <int P>
struct Rounds {
  using HalfRound = void(Block16<P>&, int, int, int);
  HalfRound* half[2];  // rows, columns
  Verdict (*select)(Block16<P>&, int, int);

  template <int N>
  static constexpr Rounds of() {
    return {{half_round<P, N, true>, half_round<P, N, false>}, select_and_prove<P, N>};
  }
  static Rounds choose(int n) {
    if constexpr (P <= 16)
      if (n == 1) return of<1>();
    if (n == P / 4) return of<P / 4>();
    if (n == P / 2) return of<P / 2>();
    return of<0>();
  }
};

// Half rounds of the first wave, rows and columns in turn, and how far each step goes beyond the
// midpoint: 2^-shift of itself, 15 for not at all. Then the number of those for the gathered tiles.
// Tuned on Gaussian tiles for time; any schedule is correct.
template <int P>
struct Schedule;
template <>
struct Schedule<8> {
  static constexpr int wave[] = {15, 2, 2, 3, 1, 2, 3, 2};
  static constexpr int more = 8;
};
template <>
struct Schedule<16> {
  static constexpr int wave[] = {15, 2, 3, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1, 2};
  static constexpr int more = 6;
};
template <>
struct Schedule<32> {
  static constexpr int wave[] = {15, 3, 2, 1, 2, 1, 1, 1, 2, 1, 1, 0, 1, 1, 1, 1, 1, 2};
  static constexpr int more = 8;
};
template <>
struct Schedule<64> {
  static constexpr int wave[] = {15, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
  static constexpr int more = 8;
};

}  // namespace transposable::TP_ISA
