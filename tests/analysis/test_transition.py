"""The step of feasibility: another formula for it, and groups drawn at random."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from transposable.analysis import feasibility, simulate, transition
from transposable.errors import PatternError


@settings(max_examples=25)
@given(st.integers(1, 64), st.data())
def test_quantiles_of_the_beta_distribution(m: int, data: st.DataObject) -> None:
    """At least m - n of m are zero: the (m - n)-th smallest of m uniform numbers is below rho."""
    n = data.draw(st.integers(0, m - 1))
    found = transition(n, m)
    expected = beta.ppf([0.1, 0.5, 0.9], m - n, n + 1)
    assert [found.low, found.middle, found.high] == pytest.approx(expected, abs=1e-9)
    assert feasibility(found.middle, n, m) == pytest.approx(0.5, abs=1e-9)


def test_the_step_sharpens_towards_its_limit() -> None:
    steps = [transition(m // 2, m) for m in (4, 8, 16, 32, 64, 256)]
    widths = [step.width for step in steps]
    assert widths == sorted(widths, reverse=True)
    distances = [abs(step.middle - step.limit) for step in steps]
    assert distances == sorted(distances, reverse=True)
    m = 256
    assert steps[-1].width == pytest.approx(2.563 * math.sqrt(0.25 / m), rel=0.02)


@pytest.mark.parametrize("pattern", ["1:2", "2:4", "1:4", "4:8", "8:16"])
@pytest.mark.parametrize("rho", [0.3, 0.5, 0.8])
def test_drawn_groups(pattern: str, rho: float) -> None:
    found = simulate(rho, pattern, draws=40_000, seed=1)
    assert found.expected is not None
    assert found.deviation is not None
    assert abs(found.estimate - found.expected) < 4 * found.standard_error
    assert found.deviation * found.standard_error == pytest.approx(found.estimate - found.expected)
    assert simulate(rho, pattern, draws=40_000, seed=1) == found


@pytest.mark.parametrize("rho", [0.3, 0.5, 0.7])
def test_drawn_tiles(rho: float) -> None:
    """1:2T leaves 7 of the 16 tiles: empty, four with one weight, two diagonals."""
    expected = rho**4 + 4 * rho**3 * (1 - rho) + 2 * rho**2 * (1 - rho) ** 2
    found = simulate(rho, "1:2T", draws=40_000)
    assert found.expected is None
    assert found.deviation is None
    assert abs(found.estimate - expected) < 4 * found.standard_error


def test_bounds_of_tiles() -> None:
    found = simulate(0.7, "2:4T", draws=40_000)
    p = feasibility(0.7, 2, 4)
    slack = 4 * found.standard_error
    assert p**8 - slack < found.estimate < p**4 + slack


@pytest.mark.parametrize(("rho", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_the_ends(rho: float, share: float) -> None:
    found = simulate(rho, "2:4", draws=100)
    assert (found.estimate, found.expected, found.deviation) == (share, share, 0.0)
    assert simulate(rho, "2:4T", draws=100).standard_error > 0, "100 tiles prove nothing"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: transition(4, 4), "always"),
        (lambda: transition(5, 4), "n=5"),
        (lambda: transition(2.0, 4), "n=2.0"),  # type: ignore[arg-type]
        (lambda: simulate(1.5, "2:4"), "rho=1.5"),
        (lambda: simulate(0.5, "2:4", draws=0), "draws=0"),
        (lambda: simulate(0.5, "2:4", draws=True), "draws=True"),
        (lambda: simulate(0.5, "50%"), "50%"),
        (lambda: simulate(0.5, "2:4S"), "2:4S"),
    ],
)
def test_bad_input(call: Any, said: str) -> None:
    with pytest.raises(PatternError, match=said):
        call()
