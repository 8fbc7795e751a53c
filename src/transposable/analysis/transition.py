"""Where feasibility steps from 0 to 1, how sharply, and whether drawn groups agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from transposable.errors import PatternError
from transposable.feasibility import feasibility
from transposable.pattern import Pattern

_CHUNK: Final = 1 << 22
"""Weights drawn at a time: 32 MiB of doubles."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The step of P(rho, n, m) in the share of zeros rho.

    Attributes:
        n, m: the group keeps at most n of m.
        middle: where P is 1/2.
        low, high: where P is 0.1 and 0.9.
        limit: 1 - n/m, where the step is for large groups.
    """

    n: int
    m: int
    middle: float
    low: float
    high: float
    limit: float

    @property
    def width(self) -> float:
        """Zeros between a group that rarely fits and one that mostly does: high - low."""
        return self.high - self.low


def transition(n: int, m: int) -> Transition:
    """The phase transition of :func:`transposable.analysis.feasibility`.

        P(middle) = 1/2,   P(low) = 0.1,   P(high) = 0.9
        middle -> 1 - n/m,   high - low -> 2.563 sqrt(n (m - n) / m^3)   for large m

    Args:
        n: how many a group of m may keep, 0 <= n < m; with n = m there is no constraint, and no
            step.
        m: group length.

    Returns:
        A :class:`Transition`; its shares are within 1e-12.

    Raises:
        PatternError: if n or m is out of range.

    Complexity: some 120 evaluations of P.

    Example:
        >>> step = transition(2, 4)
        >>> round(step.middle, 4), round(step.width, 4), step.limit
        (0.3857, 0.537, 0.5)

    Hubara et al., NeurIPS 2021, figure 5a.
    """
    feasibility(0.5, n, m)  # says what is wrong with n and m
    if n == m:
        raise PatternError(
            f"transition: received n={n}, m={m}; a group that may keep all its weights is always "
            "feasible, so there is no step; the rule is 0 <= n < m"
        )
    low, middle, high = (_share(probability, n, m) for probability in (0.1, 0.5, 0.9))
    return Transition(n, m, middle, low, high, 1 - n / m)


def _share(probability: float, n: int, m: int) -> float:
    """The share of zeros at which P has this value: P grows with it."""
    below, above = 0.0, 1.0
    while above - below > 1e-12:
        share = (below + above) / 2
        if feasibility(share, n, m) < probability:
            below = share
        else:
            above = share
    return (below + above) / 2


@dataclass(frozen=True, slots=True)
class Simulation:
    """Groups or tiles drawn at random, and how many of them satisfy the pattern.

    Attributes:
        pattern, rho: what was asked.
        draws: number of groups, or of M x M tiles for a transposable pattern.
        estimate: share that satisfies the pattern.
        standard_error: sqrt(p (1 - p) / draws), with p the expected value where it is known, else
            the estimate (Laplace's (k + 1) / (draws + 2), so that 0 of 1000 is not taken for sure).
        expected: P of one group; None for a tile, whose lines share weights: no closed form.
        seed: of the random numbers.
    """

    pattern: Pattern
    rho: float
    draws: int
    estimate: float
    standard_error: float
    expected: float | None
    seed: int

    @property
    def deviation(self) -> float | None:
        """(estimate - expected) in standard errors; None without an expected value."""
        if self.expected is None:
            return None
        difference = self.estimate - self.expected
        return difference / self.standard_error if self.standard_error else difference


def simulate(
    rho: float, pattern: str | Pattern, *, draws: int = 100_000, seed: int = 0
) -> Simulation:
    """Draw groups whose weights are zero with probability rho, and count those that satisfy N:M.

    For N:M this checks :func:`transposable.analysis.feasibility`. For N:MT it estimates what has no
    closed form: the share of M x M tiles all of whose 2 M lines hold at most N. That is at least
    P^(2 M), by Harris' inequality, and at most P^M.

    Args:
        rho: share of zeros, 0 <= rho <= 1.
        pattern: "N:M" or "N:MT".
        draws: how many groups or tiles, at least 1.
        seed: of numpy's generator.

    Returns:
        A :class:`Simulation`: the estimate, its standard error and the expected value.

    Raises:
        PatternError: if an argument is out of range, or the pattern is "N:MS" or "P%".

    Complexity: one random number for each weight drawn; memory for some million at a time.

    Example:
        >>> found = simulate(0.5, "2:4")
        >>> found.expected, abs(found.deviation) < 4
        (0.6875, True)
    """
    parsed = Pattern.parse(pattern)
    if parsed.structure not in ("row", "transposable"):
        raise PatternError(
            f"simulate: received pattern {parsed}; groups are drawn for 'N:M', tiles for 'N:MT'"
        )
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise PatternError(f"simulate: received draws={draws!r}; it is an integer >= 1")
    probability = feasibility(rho, parsed.n, parsed.m)  # says what is wrong with rho
    generator = np.random.default_rng(seed)
    m = parsed.m
    shape = (m, m) if parsed.transposable else (1, m)
    most = max(_CHUNK // math.prod(shape), 1)
    satisfied = 0
    for start in range(0, draws, most):
        kept = generator.random((min(most, draws - start), *shape)) >= rho
        holds = (kept.sum(2) <= parsed.n).all(1)
        if parsed.transposable:
            holds &= (kept.sum(1) <= parsed.n).all(1)
        satisfied += int(holds.sum())
    expected = None if parsed.transposable else probability
    p = (satisfied + 1) / (draws + 2) if expected is None else expected
    error = math.sqrt(p * (1 - p) / draws)
    return Simulation(parsed, float(rho), draws, satisfied / draws, error, expected, seed)
