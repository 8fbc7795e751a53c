"""All masks of a tiny tile, compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Final

import torch

from transposable.errors import SolverError
from transposable.pattern import Structure
from transposable.problem import Problem, infinite_stand_in
from transposable.solvers.base import Outcome, Solver

MAX_M: Final = 5
"""Largest tile side; a cropped 5 x 4 tile of 4:5T already has 923,521 masks."""

_CHUNK: Final = 1 << 16  # masks compared at a time


@dataclass(frozen=True)
class Exhaustive(Solver):
    """The best of all masks of every tile, for tiles up to 5 x 5.

        max over all S of sum_ij S_ij a_ij, in float64

    Rows are added one after the other to every mask so far, and masks that overfill a column are
    dropped. A cropped tile may keep fewer than N. Meant for tests: nothing here is clever.

    Raises:
        SolverError: from :func:`transposable.solve`, if M > 5.

    Complexity: O(weights * masks): 24 masks for 1:4, 90 for 2:4, 2,040 for 2:5 and 3:5.

    Example:
        >>> import transposable
        >>> scores = torch.rand(8, 8)
        >>> best = transposable.solve(scores, "2:4T", Exhaustive()).objective
        >>> abs(best - transposable.solve(scores, "2:4T").objective) < 1e-5
        True
    """

    name: ClassVar[str] = "exhaustive"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "all masks of tiny tiles, for tests"
    promises_optimal: ClassVar[bool] = True

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        n, m = problem.pattern.n, problem.pattern.m
        if m > MAX_M:
            raise SolverError(
                f"exhaustive: received {problem.pattern}; all masks are enumerated, which is "
                f"possible up to m={MAX_M}; use solver='exact' or solver='reference'"
            )
        batch, rows, cols = problem.matrices.shape
        kept = torch.empty(batch, rows, cols, dtype=torch.bool)
        scores = problem.scores().double()
        compared = 0
        # Full tiles, those cut at the right, at the bottom, and at the corner.
        for top, height in _parts(rows, m):
            for left, width in _parts(cols, m):
                down, across = (1 if height < m else rows // m), (1 if width < m else cols // m)
                part = scores[:, top : top + down * height, left : left + across * width]
                tiles = part.reshape(batch, down, height, across, width).transpose(2, 3)
                masks = all_masks(height, width, n, full=height == width == m)
                best = _best(tiles.reshape(-1, height * width), masks)
                chosen = masks[best].reshape(batch, down, across, height, width).transpose(2, 3)
                kept[:, top : top + down * height, left : left + across * width] = chosen.reshape(
                    part.shape
                )
                compared += len(best) * len(masks)
        return Outcome(kept, optimal=True, stats={"masks": compared})


def all_masks(rows: int, cols: int, n: int, *, full: bool) -> torch.Tensor:
    """Every mask of one tile as [masks, rows * cols] bool: exactly n per line, or at most n.

    Example:
        >>> len(all_masks(4, 4, 2, full=True)), len(all_masks(1, 2, 1, full=False))
        (90, 3)
    """
    sizes = (n,) if full else range(min(n, cols) + 1)
    choices = torch.tensor(
        [
            [column in chosen for column in range(cols)]
            for size in sizes
            for chosen in combinations(range(cols), size)
        ]
    )
    masks = torch.zeros(1, 0, cols, dtype=torch.bool)
    for _ in range(rows):
        longer = torch.cat(
            [
                masks.repeat_interleave(len(choices), 0),
                choices.repeat(len(masks), 1).unsqueeze(1),
            ],
            1,
        )
        masks = longer[(longer.sum(1) <= n).all(1)]
    if full:
        masks = masks[(masks.sum(1) == n).all(1)]
    return masks.reshape(-1, rows * cols)


def _parts(length: int, m: int) -> list[tuple[int, int]]:
    """(start, tile side) of the full tiles and of the cut one along an axis."""
    whole = length // m * m
    return [(0, m)] * (whole > 0) + [(whole, length - whole)] * (length > whole)


def _best(tiles: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The index of the best mask of every tile; tiles [count, entries]."""
    tiles = _finite(tiles)
    best = torch.zeros(len(tiles), dtype=torch.int64)
    value = torch.full((len(tiles),), -torch.inf, dtype=torch.float64)
    for start in range(0, len(masks), _CHUNK):
        sums, index = (tiles @ masks[start : start + _CHUNK].double().T).max(1)
        best = torch.where(sums > value, index + start, best)
        value = torch.maximum(sums, value)
    return best


def _finite(tiles: torch.Tensor) -> torch.Tensor:
    """Infinite scores replaced, and tiles scaled by a power of two so that no sum overflows."""
    finite = torch.where(tiles.isinf(), 0.0, tiles)
    largest = finite.abs().amax(1, keepdim=True)
    exponent = torch.frexp(largest).exponent
    scaled = torch.ldexp(torch.ldexp(finite, -(exponent // 2)), exponent // 2 - exponent)
    top = torch.where(largest > 0, scaled.abs().amax(1, keepdim=True), 1.0)
    return torch.where(tiles.isinf(), tiles.sign() * top * infinite_stand_in(1.0), scaled)
