"""The probability that a random group satisfies N:M: the definition, scipy, and drawn groups."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from transposable.errors import PatternError
from transposable.feasibility import feasibility

SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 5e-324, 2**-53, 1 - 2**-53, 1.0]))


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, int]:
    m = draw(st.integers(1, 64))
    return draw(st.integers(0, m)), m


@given(SHARES, groups())
def test_the_definition_in_rational_numbers(rho: float, group: tuple[int, int]) -> None:
    n, m = group
    share = Fraction(rho)
    exact = sum(
        math.comb(m, zeros) * share**zeros * (1 - share) ** (m - zeros)
        for zeros in range(m - n, m + 1)
    )
    assert feasibility(rho, n, m) == float(exact)


@given(st.floats(0, 1), groups())
def test_the_binomial_tail_of_scipy(rho: float, group: tuple[int, int]) -> None:
    n, m = group
    expected = binom.sf(m - n - 1, m, rho)
    assert feasibility(rho, n, m) == pytest.approx(expected, rel=1e-10, abs=1e-300)


@given(SHARES, st.integers(1, 64))
def test_more_kept_is_more_likely(rho: float, m: int) -> None:
    values = [feasibility(rho, n, m) for n in range(m + 1)]
    assert values == sorted(values)
    assert values[-1] == 1
    assert values[0] == pytest.approx(rho**m, rel=1e-13, abs=1e-320)


@pytest.mark.parametrize(("n", "m", "rho"), [(2, 4, 0.5), (4, 8, 0.6), (2, 8, 0.8), (16, 32, 0.45)])
def test_drawn_groups(n: int, m: int, rho: float) -> None:
    draws = 200_000
    zeros = (np.random.default_rng(0).random((draws, m)) < rho).sum(1)
    found = float((zeros >= m - n).mean())
    expected = feasibility(rho, n, m)
    assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


def test_the_papers_count_of_zeros() -> None:
    """Its 6 zeros of 8 are 2 kept of 8 here."""
    assert feasibility(0.75, 8 - 6, 8) == sum(
        math.comb(8, i) * 0.75**i * 0.25 ** (8 - i) for i in (6, 7, 8)
    )


@pytest.mark.parametrize("m", [8, 16, 32, 64])
def test_the_transition_sharpens(m: int) -> None:
    below, above = (feasibility(rho, m // 2, m) for rho in (0.4, 0.6))
    smaller = [feasibility(rho, m // 4, m // 2) for rho in (0.4, 0.6)]
    assert below < smaller[0]
    assert above > smaller[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.5, 5, 4), "n=5, m=4"),
        ((0.5, -1, 4), "n=-1"),
        ((0.5, 0, 0), "m=0"),
        ((0.5, 2.0, 4), "n=2.0"),
        ((0.5, 2, True), "m=True"),
        ((-0.1, 2, 4), "rho=-0.1"),
        ((1.5, 2, 4), "rho=1.5"),
        ((math.nan, 2, 4), "rho=nan"),
        (("half", 2, 4), "rho='half'"),
    ],
)
def test_what_is_no_group_or_share(arguments: tuple[Any, Any, Any], said: str) -> None:
    with pytest.raises(PatternError, match=said):
        feasibility(*arguments)
