"""Mask diversity: how many masks a pattern allows on a weight of a given shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, get_args

from transposable.analysis.counting import Count, bounded_matrices, regular_matrices
from transposable.errors import LayoutError, PatternError
from transposable.layout import Layout, LayoutName
from transposable.pattern import Pattern

Method = Literal["exact", "paper"]

MOST_DIGITS: Final = 1_000_000
"""Longest number of masks that :attr:`Diversity.count` builds, in decimal digits."""

_LN10: Final = math.log(10)


@dataclass(frozen=True, slots=True)
class Binomial:
    """C(total, kept), not multiplied out: it may have millions of digits."""

    total: int
    kept: int

    def __int__(self) -> int:
        return math.comb(self.total, self.kept)


@dataclass(frozen=True, slots=True)
class Factor:
    """``times`` independent parts of the mask with the same number of choices each.

    Attributes:
        what: which parts: full tiles, cropped groups, ...
        times: how many; a fraction where the paper's form meets a weight that it does not divide.
        choices: their exact number; None where it is only estimated.
        log10: its decimal logarithm.
        error: largest error of ``log10``, 0 where the number is exact.
    """

    what: str
    times: int | Fraction
    choices: int | Binomial | None
    log10: float
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Diversity:
    """The number of masks, as independent factors; see :func:`diversity`.

    Attributes:
        pattern, shape, method: what was asked.
        weights: number of weights.
        log10: decimal logarithm of the number of masks.
        error: largest error of ``log10`` apart from the rounding of doubles; 0 where every factor
            is known exactly.
        factors: independent parts of the mask.
        counted: in words, which masks are counted.
    """

    pattern: Pattern
    shape: tuple[int, ...]
    method: Method
    weights: int
    log10: float
    error: float
    factors: tuple[Factor, ...]
    counted: str

    @property
    def bits_per_weight(self) -> float:
        """log2 of the number of masks over the number of weights, from 0 to 1; 0 for no weights.

        It is what storing the mask needs at least, whatever the format.
        """
        return self.log10 * math.log2(10) / max(self.weights, 1)

    @property
    def count(self) -> int:
        """The number of masks itself, as an exact integer.

        Raises:
            PatternError: if it is only estimated, has more than MOST_DIGITS digits, or is the
                paper's form with an exponent that is not whole.
        """
        if self.log10 > MOST_DIGITS:
            raise PatternError(
                f"Diversity.count: the number of {self.pattern} masks on {self.shape} has "
                f"{self.log10:,.0f} digits; at most {MOST_DIGITS:,} are written out; use log10"
            )
        product = 1
        for factor in self.factors:
            if factor.choices is None:
                raise PatternError(
                    f"Diversity.count: the number of {self.pattern} masks on {self.shape} is an "
                    f"estimate ({factor.what}: 10^{factor.log10:.6g}, log10 within "
                    f"{factor.error:.1g}); use log10 and error"
                )
            if Fraction(factor.times).denominator != 1:
                raise PatternError(
                    f"Diversity.count: the paper's form for {self.pattern} on {self.shape} has the "
                    f"exponent {factor.times}, so it is no integer; use log10"
                )
            product *= int(factor.choices) ** int(factor.times)
        return product


def diversity(
    pattern: str | Pattern,
    shape: tuple[int, ...],
    method: Method = "exact",
    *,
    layout: LayoutName | Layout = "linear",
    groups: int = 1,
) -> Diversity:
    """How many masks of a pattern there are on a weight of this shape.

        unstructured     C(T, K),  K = ceil(T n/m)
        N:M              C(M, N) ^ groups
        N:MS             (M - N + 1) ^ groups
        N:MT             B(M, N) ^ tiles,  B = number of 0/1 M x M matrices with line sums N
        N:MT, "paper"    (M! (M-1)! ... (M-Z+1)!) ^ (T / M^2),  Z = M - N zeros of a line

    with T the number of weights. Counted are the masks that :func:`transposable.verify` accepts and
    that keep exactly N in every full group or tile; a group or tile that the edge crops keeps *at
    most* N per line, and all its masks count.

    The paper's closed form over-counts, 1.6 times for one tile of 2:4T and 150 times for 4:8T: it
    lays down Z permutation matrices one by one, and a mask arises from many such sequences. (Nor do
    (M-1)! permutations avoid a first one: it is 9 for M = 4, not 6.) With it 4:8T allows 1.76e13
    masks of an 8 x 8 block, more than the 2.82e12 of 2:4; in fact it allows 1.17e11, fewer. Where
    N != M/2 it is not even symmetric in zeros and ones. The other forms are the paper's as well.

    Args:
        pattern: "50%", "2:4", "4:8S", "4:8T", ...
        shape: of the weight, for example (8, 8) for the paper's table 1.
        method: "exact", or "paper" for its closed form; then nothing is cropped, and the exponent
            need not be whole.
        layout, groups: how the tensor is read, as in :func:`transposable.find_mask`.

    Returns:
        A :class:`Diversity`: log10 and its error, and the exact integer on request.

    Raises:
        PatternError: if the pattern or the method is none.
        LayoutError: if the shape does not fit the layout.

    Complexity: that of :func:`~transposable.analysis.counting.regular_matrices` once for a
        transposable pattern (at most seconds); the rest is a handful of logarithms, whatever the
        shape.

    Example:
        >>> [diversity(p, (4, 4)).count for p in ("1:4T", "2:4T", "3:4T", "2:4", "50%")]
        [24, 90, 24, 1296, 12870]
        >>> block = diversity("4:8T", (8, 8)), diversity("4:8T", (8, 8), "paper")
        >>> [f"{10**d.log10:.3g}" for d in block]
        ['1.17e+11', '1.76e+13']

    Hubara et al., NeurIPS 2021, table 1; exact numbers: OEIS A008300.
    """
    parsed = Pattern.parse(pattern)
    if method not in get_args(Method):
        raise PatternError(
            f"diversity: received method {method!r}; it is 'exact', or 'paper' for its closed form"
        )
    read = Layout.of(layout, groups)
    shape = tuple(shape)
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise LayoutError(f"diversity: received shape {shape}; its sides are integers >= 0")
    read.check(shape, "diversity")
    sides = _matrices(shape, read)
    weights = math.prod(sides)
    if method == "paper":
        factors, counted = _paper(parsed, weights)
    elif parsed.structure == "unstructured":
        factors, counted = _unstructured(parsed, weights)
    elif parsed.transposable:
        factors, counted = _tiles(parsed, *sides)
    else:
        factors, counted = _groups(parsed, *sides)
    factors = tuple(factor for factor in factors if factor.times)
    log10 = math.fsum(float(factor.times) * factor.log10 for factor in factors)
    error = math.fsum(float(factor.times) * factor.error for factor in factors)
    return Diversity(parsed, shape, method, weights, log10, error, factors, counted)


def _matrices(shape: tuple[int, ...], read: Layout) -> tuple[int, int, int]:
    """[batch, rows, cols] of the matrices that a layout reads in a tensor of this shape."""
    if read.name == "linear":
        return 1, shape[0], shape[1]
    if read.name == "stacked":
        return math.prod(shape[:-2]), shape[-2], shape[-1]
    return read.groups * math.prod(shape[2:]), shape[0] // read.groups, shape[1]


def _factor(what: str, times: int | Fraction, count: Count) -> Factor:
    return Factor(what, times, count.exact, count.ln / _LN10, count.error / _LN10)


def _unstructured(pattern: Pattern, weights: int) -> tuple[tuple[Factor, ...], str]:
    kept = -(-weights * pattern.n // pattern.m)
    ln = math.lgamma(weights + 1) - math.lgamma(kept + 1) - math.lgamma(weights - kept + 1)
    choices = Binomial(weights, kept)
    if weights <= 10_000:  # small numbers without the cancellation
        ln = math.log(int(choices))
    factor = Factor("whole weight", 1, choices, ln / _LN10)
    return (factor,), f"all choices of {kept:,} of the {weights:,} weights"


def _groups(pattern: Pattern, batch: int, rows: int, cols: int) -> tuple[tuple[Factor, ...], str]:
    """Groups of M along the rows, the last one of a row possibly cropped."""
    n, m = pattern.n, pattern.m
    full, rest = divmod(cols, m)
    if pattern.structure == "sequential":
        whole = m - n + 1
        cropped = 1 + sum(rest - run + 1 for run in range(1, min(n, rest) + 1))
    else:
        whole = math.comb(m, n)
        cropped = sum(math.comb(rest, kept) for kept in range(min(n, rest) + 1))
    factors = [_factor("full groups", batch * rows * full, Count.of(whole))]
    if rest:
        factors.append(_factor(f"groups cropped to {rest}", batch * rows, Count.of(cropped)))
    return tuple(factors), _counted("groups", bool(rest))


def _tiles(pattern: Pattern, batch: int, rows: int, cols: int) -> tuple[tuple[Factor, ...], str]:
    """M x M tiles, the last ones of rows and columns possibly cropped."""
    n, m = pattern.n, pattern.m
    (down, bottom), (across, right) = divmod(rows, m), divmod(cols, m)
    factors = [_factor("full tiles", batch * down * across, regular_matrices(m, n))]
    edges = [(m, right, down), (bottom, m, across), (bottom, right, 1)]
    for high, wide, times in edges:
        if high and wide and times:
            count = bounded_matrices(high, wide, n)
            factors.append(_factor(f"tiles cropped to {high} x {wide}", batch * times, count))
    return tuple(factors), _counted("tiles", bool(bottom or right))


def _counted(parts: str, ragged: bool) -> str:
    text = f"exactly N kept in every line of the full {parts}"
    return f"{text}, at most N in those that the edge crops" if ragged else text


def _paper(pattern: Pattern, weights: int) -> tuple[tuple[Factor, ...], str]:
    if pattern.structure == "unstructured":
        return _unstructured(pattern, weights)
    n, m = pattern.n, pattern.m
    if pattern.transposable:
        choices = math.prod(math.factorial(m - k) for k in range(m - n))
        factor = _factor("tiles", _whole(Fraction(weights, m * m)), Count.of(choices))
        return (factor,), "the paper's closed form, which over-counts"
    choices = m - n + 1 if pattern.structure == "sequential" else math.comb(m, n)
    factor = _factor("groups", _whole(Fraction(weights, m)), Count.of(choices))
    return (factor,), "the paper's closed form"


def _whole(times: Fraction) -> int | Fraction:
    return int(times) if times.denominator == 1 else times
