"""The oracle against enumeration and against another flow solver, and its exact integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oracle import best_flow
from score_families import make_scores
from strategies import FAMILIES, scores
from transposable import Exhaustive, Reference, solve
from transposable.solvers.reference import best_mask, to_integers

FINITE = st.floats(allow_nan=False, width=64)


@settings(max_examples=80)
@given(
    matrix=scores(9),
    pattern=st.sampled_from(["1:2T", "1:3T", "2:3T", "1:4T", "2:4T", "3:4T", "2:5T"]),
)
def test_against_all_masks(matrix: torch.Tensor, pattern: str) -> None:
    flow = solve(matrix, pattern, Reference()).objective
    best = solve(matrix, pattern, Exhaustive()).objective
    assert flow == pytest.approx(best, rel=1e-12, abs=1e-12 * matrix.double().abs().sum().item())


@settings(max_examples=50)
@given(
    family=st.sampled_from(
        ["|gaussian|", "gaussian", "-|gaussian|", "|ties|", "column offsets", "one-hot"]
    ),
    m=st.integers(2, 8),
    data=st.data(),
)
def test_against_another_flow_solver(family: str, m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    full = data.draw(st.booleans())
    rows, cols = (
        (m, m) if full else (data.draw(st.integers(1, m)), data.draw(st.integers(1, m - 1)))
    )
    real = make_scores(family, rows, cols, data.draw(st.integers(0, 10**6)))
    a = (real * 1000).round().long().tolist()
    kept, _ = best_mask(a, n, full=full)
    counts = [sum(row) for row in kept] + [sum(column) for column in zip(*kept, strict=True)]
    assert all(count == n if full else count <= n for count in counts)
    integers = np.array(a, np.int64).reshape(rows, cols)
    assert integers[np.array(kept)].sum() == integers[best_flow(integers, n, full=full)].sum()


@given(st.lists(st.lists(FINITE, min_size=2, max_size=2), min_size=1, max_size=3))
@example([[5e-324, 1.7976931348623157e308]])
@example([[math.inf, -math.inf]])
def test_integers_are_exact(rows: list[list[float]]) -> None:
    whole = to_integers(rows)
    finite = [
        (x, value)
        for row, values in zip(rows, whole, strict=True)
        for x, value in zip(row, values, strict=True)
        if not math.isinf(x)
    ]
    for x, value in finite:
        for y, other in finite:  # the same ratios, by cross-multiplication of exact fractions
            (a, b), (c, d) = x.as_integer_ratio(), y.as_integer_ratio()
            assert value * c * b == other * a * d
    largest = max((abs(value) for _, value in finite), default=0)
    for row, values in zip(rows, whole, strict=True):
        for x, value in zip(row, values, strict=True):
            if math.isinf(x):
                assert abs(value) >= 2**14 * max(largest, 1)
                assert (value > 0) == (x > 0)


def test_differences_below_a_float_decide() -> None:
    """Two sums that agree in float64 and differ exactly."""
    block = torch.tensor([[1.0, 1e-30], [0.0, 1.0]], dtype=torch.float64)
    assert solve(block, "1:2T", Reference()).mask.tensor.tolist() == [[True, False], [False, True]]
    block = torch.tensor([[1.0, 2.0], [1e-30, 1.0]], dtype=torch.float64)
    assert solve(block, "1:2T", Reference()).mask.tensor.tolist() == [[False, True], [True, False]]


def test_families_cover_both_signs() -> None:
    signs = [make_scores(family, 8, 8, 0) for family in FAMILIES]
    assert any((s < 0).any() and (s > 0).any() for s in signs)
    assert all(not s.isnan().any() and not s.isinf().any() for s in signs)
