"""Mask diversity: all masks looked at, the paper's table, and what must hold for every pattern."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import transposable
from transposable.analysis import diversity
from transposable.errors import LayoutError, PatternError
from transposable.layout import Layout
from transposable.pattern import Pattern


def masks(shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    bits = np.arange(1 << count)[:, None] >> np.arange(count) & 1
    return bits.reshape(1 << count, *shape)


def holds(mask: np.ndarray, pattern: Pattern) -> np.ndarray:
    """For each of the masks [count, rows, cols]: exactly N in full parts, at most N in cropped."""
    n, m = pattern.n, pattern.m
    _, rows, cols = mask.shape
    ok = np.ones(len(mask), dtype=bool)
    if pattern.structure == "unstructured":
        return mask.sum((1, 2)) == math.ceil(Fraction(n, m) * rows * cols)
    high = m if pattern.transposable else 1
    for top in range(0, rows, high):
        for left in range(0, cols, m):
            part = mask[:, top : top + high, left : left + m]
            full = part.shape[1] == high and part.shape[2] == m
            axes = (1, 2) if pattern.transposable else (2,)
            for axis in axes:
                sums = part.sum(axis)
                ok &= ((sums == n) if full else (sums <= n)).all(1)
            if pattern.structure == "sequential":
                runs = (np.diff(part, axis=2, prepend=0) == 1).sum(2)
                ok &= (runs <= 1).all(1)
    return ok


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        *(("50%", (3, 5)), ("33.3333%", (2, 4)), ("2:4", (2, 8)), ("2:4", (2, 7)), ("1:3", (3, 5))),
        *(("2:4S", (2, 8)), ("2:4S", (2, 7)), ("2:3S", (3, 5)), ("1:4S", (2, 6)), ("3:4S", (2, 7))),
        *(("1:2T", (4, 4)), ("1:2T", (3, 5)), ("2:4T", (4, 4)), ("2:3T", (4, 4)), ("1:3T", (3, 5))),
        *(("2:4T", (3, 5)), ("3:4T", (5, 3)), ("4:8T", (3, 5)), ("2:4", (0, 4)), ("2:4T", (4, 0))),
    ],
)
def test_every_mask_looked_at(pattern: str, shape: tuple[int, int]) -> None:
    parsed = Pattern.parse(pattern)
    every = masks(shape)
    accepted = holds(every, parsed)
    found = diversity(pattern, shape)
    assert found.count == accepted.sum()
    assert found.log10 == pytest.approx(math.log10(found.count), abs=1e-12)
    assert found.error == 0
    for mask in every[accepted][:50]:
        assert transposable.verify(torch.from_numpy(mask != 0), pattern).ok


def test_the_papers_table() -> None:
    """An 8 x 8 block at 50 %: its figures by its form, and the exact ones where they differ."""
    by_paper = {"50%": 1.8e18, "4:8": 5.8e14, "2:4": 2.8e12, "4:8T": 1.76e13, "2:4T": 4.3e8}
    for pattern, number in by_paper.items():
        assert 10 ** diversity(pattern, (8, 8), "paper").log10 == pytest.approx(number, rel=0.03)
        same = diversity(pattern, (8, 8)).count == diversity(pattern, (8, 8), "paper").count
        assert same == (not pattern.endswith("T"))
    assert diversity("4:8T", (8, 8)).count == 116_963_796_250
    assert diversity("2:4T", (8, 8)).count == 90**4
    assert diversity("2:4T", (8, 8), "paper").count == 144**4
    # The paper's remark, and its reversal.
    wide, narrow = (diversity(p, (8, 8), "paper").log10 for p in ("4:8T", "2:4"))
    assert wide > narrow
    wide, narrow = (diversity(p, (8, 8)).log10 for p in ("4:8T", "2:4"))
    assert wide < narrow


def test_the_papers_form_counts_zeros() -> None:
    assert diversity("3:4T", (4, 4), "paper").count == 24 == diversity("3:4T", (4, 4)).count
    assert diversity("1:4T", (4, 4), "paper").count == 24 * 6 * 2


@given(st.integers(2, 12), st.data())
def test_zeros_and_ones_can_be_exchanged(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, m - 1))
    for structure in ("row", "transposable"):
        one, other = (Pattern(k, m, structure) for k in (n, m - n))  # type: ignore[arg-type]
        assert diversity(one, (2 * m, m)).count == diversity(other, (2 * m, m)).count


@pytest.mark.parametrize("m", [4, 8, 12])
def test_order(m: int) -> None:
    """More freedom, more masks: sequential < plain, transposable < plain < unstructured."""
    shape = (m, m)
    half = f"{m // 2}:{m}"
    numbers = [diversity(half + suffix, shape).count for suffix in ("S", "", "T")]
    free = diversity("50%", shape).count
    assert numbers[0] < numbers[1] < free
    assert numbers[2] < numbers[1]
    by_n = [diversity(Pattern(n, m, "transposable"), shape).count for n in range(1, m // 2 + 1)]
    assert by_n == sorted(set(by_n))


def test_larger_tiles_are_freer() -> None:
    bits = [diversity(p, (64, 64)).bits_per_weight for p in ("1:2T", "2:4T", "4:8T", "8:16T")]
    bits.append(diversity("16:32T", (64, 64)).bits_per_weight)
    assert bits == sorted(set(bits))
    assert bits[-1] < diversity("16:32", (64, 64)).bits_per_weight < 1


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((16, 8, 3, 3), Layout("conv")), ((16, 4, 3), Layout("conv", 2)), ((3, 8, 12), "stacked")],
)
def test_layouts(shape: tuple[int, ...], layout: Any) -> None:
    """As many independent matrices as the layout reads."""
    read = Layout.of(layout)
    matrices = read.matrices(torch.zeros(shape))
    for pattern in ("2:4", "2:4T", "4:8T", "4:8S"):
        one = diversity(pattern, tuple(matrices.shape[1:])).count
        assert diversity(pattern, shape, layout=layout).count == one ** len(matrices)
    assert diversity("50%", shape, layout=layout).weights == math.prod(shape)


def test_a_huge_shape_costs_nothing() -> None:
    shape = (1 << 20, (1 << 20) + 4)
    for pattern in ("50%", "2:4", "4:8", "4:8T", "16:32T"):
        found = diversity(pattern, shape)
        assert 0.1 < found.bits_per_weight < 1
        assert found.error < 1e-4 * found.log10
        with pytest.raises(PatternError, match="digits"):
            found.count  # noqa: B018
    assert diversity("50%", shape).bits_per_weight == pytest.approx(1, abs=1e-9)


def test_logarithms_agree_with_the_integers() -> None:
    for weights in (9_998, 10_002, 40_000):
        found = diversity("25%", (2, weights // 2))
        assert found.log10 == pytest.approx(math.log10(found.count), rel=1e-12)


def test_an_estimate_is_no_integer() -> None:
    found = diversity("16:32T", (64, 32))
    assert found.error > 0
    with pytest.raises(PatternError, match="estimate"):
        found.count  # noqa: B018
    ragged = diversity("8:16T", (28, 16))  # 12 x 16, at most 8: between two bounds
    assert 0 < ragged.error < 0.01 * ragged.log10
    exact = diversity("8:16T", (16, 16)).log10
    assert exact < ragged.log10 - ragged.error


def test_the_papers_form_need_not_be_whole() -> None:
    found = diversity("4:8T", (10, 10), "paper")
    assert found.log10 == pytest.approx(100 / 64 * math.log10(40320 * 5040 * 720 * 120))
    with pytest.raises(PatternError, match="exponent"):
        found.count  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("2:4", (8, 8), "guess"), PatternError, "guess"),
        (("hello", (8, 8)), PatternError, "accepted forms"),
        (("2:4", (8,)), LayoutError, "1-D"),
        (("2:4", (8, -8)), LayoutError, "sides"),
        (("2:4", (8, 8.0)), LayoutError, "sides"),
        (("2:4", (8, 8, 3)), LayoutError, "3-D"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        diversity(*arguments)
