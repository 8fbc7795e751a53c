"""How many 0/1 matrices have given line sums: exactly where that is quick, else within bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MOST_STATES: Final = 20_000
"""Largest number of multisets of column sums for which counts are exact: seconds in Python."""

ASYMPTOTIC_ERROR: Final = 0.05
"""The asymptotic count's natural logarithm is wrong by less than this over N (M - N) / M."""

_BITS: Final = 8
_DIGIT: Final = (1 << _BITS) - 1


@dataclass(frozen=True, slots=True)
class Count:
    """A number of masks: exact, or a natural logarithm with the largest error it can have."""

    ln: float
    error: float
    exact: int | None

    @classmethod
    def of(cls, number: int) -> Count:
        """A number that is known."""
        return cls(math.log(number), 0.0, number)


@lru_cache(maxsize=512)
def regular_matrices(m: int, n: int) -> Count:
    """The number of 0/1 matrices of side m whose row and column sums are all n.

    Exact for every m up to 16, and beyond wherever half of the rows reach at most MOST_STATES
    multisets of column sums; else the asymptotic formula, see :func:`asymptotic_log`.

    Complexity: the dynamic program visits the multisets that 1, 2, ..., m/2 rows reach, and from
    each all ways to add a row; 8 of 16 takes a few seconds once, then the result is kept.

    Example:
        >>> [regular_matrices(4, n).exact for n in range(5)]
        [1, 24, 90, 24, 1]
        >>> regular_matrices(8, 4).exact
        116963796250
    """
    n = min(n, m - n)  # exchanging 0 and 1 exchanges N and M - N
    if n == 0:
        return Count.of(1)
    rest = m - m // 2
    if _multisets(m, min(n, rest), n * rest) > MOST_STATES:
        return Count(asymptotic_log(m, n), ASYMPTOTIC_ERROR * m / (n * (m - n)), None)
    # Rows are exchangeable: the first half and the second meet where their column sums add to n.
    table = {m: 1}
    half = table
    for row in range(1, rest + 1):
        table = _add_row(table, n, n, n)
        if row == m // 2:
            half = table
    total = 0
    arrangements = math.factorial(m)
    for key, ways in half.items():
        counts = _counts(key, n)
        other = table.get(_key(counts[::-1]))
        if other is not None:
            orders = arrangements // math.prod(map(math.factorial, counts))
            # Both count the matrices of a multiset in all orders of the columns.
            total += ways * other // orders
    return Count.of(total)


def asymptotic_log(m: int, n: int) -> float:
    """Natural logarithm of the asymptotic number of m x m matrices with all line sums n.

        B(m, n) ~ C(m, n)^(2m) / C(m^2, mn) * ((m - 1) / m)^(m - 1) * e^(1/2),   0 < n < m

    Its error in the logarithm goes to 0 as n (m - n) / m grows, and is below ASYMPTOTIC_ERROR over
    that in every case that is counted exactly here; beyond them that is an extrapolation.

    Canfield and McKay, Electronic J. Combin. 12 (2005) R29 for dense matrices; the same to leading
    order as O'Neil, Bull. AMS 75 (1969) for sparse ones, and proved for all densities between by
    Liebenau and Wormald, arXiv 1702.08373.

    Example:
        >>> abs(asymptotic_log(8, 4) - math.log(116_963_796_250)) < 0.01
        True
    """
    return (
        2 * m * math.log(math.comb(m, n))
        - math.log(math.comb(m * m, m * n))
        + (m - 1) * math.log1p(-1 / m)
        + 0.5
    )


@lru_cache(maxsize=512)
def bounded_matrices(rows: int, cols: int, n: int) -> Count:
    """The number of rows x cols 0/1 matrices whose row and column sums are *at most* n.

    Exact where one of the constraints is void or the dynamic program is small. Else between two
    bounds: of all 2^(rows cols) matrices a share p of the rows and q of the columns holds n at
    most, and Harris' inequality (both are easier for fewer ones) gives

        2^(rows cols) p^rows q^cols  <=  count  <=  2^(rows cols) min(p^rows, q^cols)

    Example:
        >>> bounded_matrices(2, 3, 1).exact  # none, 6 with a single one, 6 with two
        13
    """
    if cols > rows:
        rows, cols = cols, rows
    by_row = sum(math.comb(cols, k) for k in range(min(n, cols) + 1))
    by_col = sum(math.comb(rows, k) for k in range(min(n, rows) + 1))
    if n >= cols:  # rows cannot hold too much
        return Count.of(by_col**cols)
    if math.comb(cols + n, n) <= MOST_STATES // 10:
        table = {cols: 1}
        for _ in range(rows):
            table = _add_row(table, 0, n, n)
        return Count.of(sum(table.values()))
    p, q = (
        math.log(by_row) - cols * math.log(2),
        math.log(by_col) - rows * math.log(2),
    )
    most = min(rows * p, cols * q)
    least = rows * p + cols * q
    free = rows * cols * math.log(2)
    return Count(free + (most + least) / 2, (most - least) / 2, None)


def _add_row(table: dict[int, int], fewest: int, most: int, top: int) -> dict[int, int]:
    """The multisets after one more row of ``fewest`` to ``most`` ones, no column above ``top``.

    A multiset is packed into an integer: digit l is the number of columns whose sum is l. Its value
    is the number of matrices that have it, over all orders of the columns.
    """
    found: dict[int, int] = {}
    for key, ways in table.items():
        counts = _counts(key, top)
        below = sum(counts[:top])  # columns that may still take a one
        parts = [(key, 0, ways)]
        for level in range(top - 1, -1, -1):  # from above, so that no column is raised twice
            count = counts[level]
            if not count:
                continue
            below -= count
            up = (1 << _BITS * (level + 1)) - (1 << _BITS * level)
            choose = [math.comb(count, t) for t in range(count + 1)]
            parts = [
                (state + t * up, placed + t, product * choose[t])
                for state, placed, product in parts
                for t in range(max(0, fewest - placed - below), min(count, most - placed) + 1)
            ]
        for state, _, product in parts:
            found[state] = found.get(state, 0) + product
    return found


def _counts(key: int, top: int) -> list[int]:
    """The digits of a packed multiset, levels 0 to top."""
    return [key >> _BITS * level & _DIGIT for level in range(top + 1)]


def _key(counts: list[int]) -> int:
    return sum(count << _BITS * level for level, count in enumerate(counts))


@lru_cache(maxsize=512)
def _multisets(parts: int, largest: int, total: int) -> int:
    """How many multisets of ``parts`` numbers from 0 to ``largest`` add up to ``total``."""
    table = [[0] * (total + 1) for _ in range(parts + 1)]
    table[0][0] = 1
    for value in range(1, largest + 1):
        for used in range(1, parts + 1):
            for reached in range(value, total + 1):
                table[used][reached] += table[used - 1][reached - value]
    return sum(row[total] for row in table)
