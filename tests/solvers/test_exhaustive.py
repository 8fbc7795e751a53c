"""Exhaustive: the lists of masks, and its limit."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from transposable import Exhaustive, SolverError, solve
from transposable.solvers.exhaustive import all_masks


@pytest.mark.parametrize(
    ("n", "m", "count"),
    [
        (1, 2, 2),
        (1, 3, 6),
        (2, 3, 6),
        (1, 4, 24),
        (2, 4, 90),
        (3, 4, 24),
        (2, 5, 2040),
        (4, 5, 120),
    ],
)
def test_numbers_of_full_masks(n: int, m: int, count: int) -> None:
    masks = all_masks(m, m, n, full=True)
    assert len(masks.unique(dim=0)) == len(masks) == count


@pytest.mark.parametrize(
    ("rows", "cols", "n"), [(1, 1, 1), (2, 3, 1), (3, 2, 2), (3, 3, 1), (1, 4, 2)]
)
def test_cropped_masks_are_all_there(rows: int, cols: int, n: int) -> None:
    expected = 0
    for bits in product((False, True), repeat=rows * cols):
        mask = torch.tensor(bits).reshape(rows, cols)
        expected += bool((mask.sum(0) <= n).all() and (mask.sum(1) <= n).all())
    masks = all_masks(rows, cols, n, full=False)
    assert len(masks.unique(dim=0)) == len(masks) == expected


def test_the_largest_cropped_tile() -> None:
    """4:5T cropped to 5 x 4: 923,521 masks, of which the best prunes one entry of each column."""
    scores = torch.arange(20.0).reshape(5, 4) + 1
    solution = solve(scores, "4:5T", Exhaustive())
    assert solution.stats["masks"] == 923_521
    assert solution.objective == scores.sum().item() - scores[0].sum().item()


def test_a_large_tile_is_an_error() -> None:
    with pytest.raises(SolverError, match=r"exhaustive: received 2:6T.*m=5.*solver='exact'"):
        solve(torch.ones(6, 6), "2:6T", Exhaustive())
