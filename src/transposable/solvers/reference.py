"""A slow, readable oracle: min-cost flow in exact integers, in plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.pattern import Structure
from transposable.problem import Problem
from transposable.solvers.base import Outcome, Solver


@dataclass(frozen=True)
class Reference(Solver):
    """The optimal mask of every tile by successive shortest paths, in exact arithmetic.

        source -> row (capacity N) -> column (capacity 1, gain a_ij) -> sink (capacity N)

    This is the network of Hubara et al. 2021 (figure 4) for the kept entries. Each path from a row
    with room to a column with room adds one unit; the path of greatest gain is found by Bellman and
    Ford's relaxation, and keeps the flow optimal among all of its size. A full tile takes N * M
    units; a cropped one stops when no path gains. Scores are turned into integers of any size, so
    that no sum is ever rounded. An infinite score counts as 2^14 times the largest finite magnitude
    of its tile, as in :func:`transposable.certify`.

    Shares no code with the native solvers; meant for tests.

    Complexity: O(N M) paths of O(M^3) steps a tile: about 3 ms for 2:4T and 0.1 s for 4:8T.

    Example:
        >>> import transposable
        >>> scores = torch.rand(8, 8)
        >>> best = transposable.solve(scores, "4:8T", Reference()).objective
        >>> abs(best - transposable.solve(scores, "4:8T").objective) < 1e-5
        True
    """

    name: ClassVar[str] = "reference"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "exact min-cost flow in plain Python, for tests"
    promises_optimal: ClassVar[bool] = True

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        n, m = problem.pattern.n, problem.pattern.m
        batch, rows, cols = problem.matrices.shape
        kept = torch.empty(batch, rows, cols, dtype=torch.bool)
        paths = 0
        for b in range(batch):
            for top in range(0, rows, m):
                for left in range(0, cols, m):
                    block = problem.matrices[b, top : top + m, left : left + m].double()
                    scores = (block.abs() if problem.magnitude else block).tolist()
                    full = len(scores) == len(scores[0]) == m
                    mask, used = best_mask(to_integers(scores), n, full=full)
                    kept[b, top : top + m, left : left + m] = torch.tensor(mask)
                    paths += used
        return Outcome(kept, optimal=True, stats={"paths": paths})


def to_integers(scores: list[list[float]]) -> list[list[int]]:
    """The scores times a power of two that makes all of them integers; exact.

    Example:
        >>> to_integers([[0.5, -0.25], [float("inf"), 0.0]])
        [[2, -1], [32768, 0]]
    """
    finite = [x for row in scores for x in row if not math.isinf(x)]
    # The denominator of a float is a power of two, so the largest one is common to all.
    common = max((x.as_integer_ratio()[1] for x in finite), default=1)

    def integer(x: float) -> int:
        if math.isinf(x):
            return stand_in if x > 0 else -stand_in
        above, below = x.as_integer_ratio()
        return above * (common // below)

    stand_in = (max((abs(integer(x)) for x in finite), default=0) or common) << 14
    return [[integer(x) for x in row] for row in scores]


def best_mask(a: list[list[int]], n: int, *, full: bool) -> tuple[list[list[bool]], int]:
    """The best mask of one tile, and the number of paths.

    Args:
        a: integer scores.
        n: exactly n are kept per row and column if ``full``, else at most n.
    """
    rows, cols = range(len(a)), range(len(a[0]))
    kept = [[False for _ in cols] for _ in rows]
    in_row, in_col = [0 for _ in rows], [0 for _ in cols]
    paths = 0
    while True:
        # gain_row[i], gain_col[j]: the greatest gain of a path so far from a row with room to here.
        gain_row: list[int | None] = [0 if in_row[i] < n else None for i in rows]
        gain_col: list[int | None] = [None for _ in cols]
        via_row: list[int] = [-1 for _ in cols]  # the row before a column, by an entry to keep
        via_col: list[int] = [-1 for _ in rows]  # the column before a row, by an entry to drop
        changed = True
        while changed:
            changed = False
            for i in rows:
                here = gain_row[i]
                if here is None:
                    continue
                for j in cols:
                    best = gain_col[j]
                    if not kept[i][j] and (best is None or here + a[i][j] > best):
                        gain_col[j], via_row[j], changed = here + a[i][j], i, True
            for j in cols:
                here = gain_col[j]
                if here is None:
                    continue
                for i in rows:
                    best = gain_row[i]
                    if kept[i][j] and (best is None or here - a[i][j] > best):
                        gain_row[i], via_col[i], changed = here - a[i][j], j, True
        ends = [(gain, j) for j in cols if in_col[j] < n and (gain := gain_col[j]) is not None]
        if not ends or (not full and max(ends)[0] <= 0):
            return kept, paths
        column = max(ends)[1]
        in_col[column] += 1
        while column >= 0:  # back to the start, keeping and dropping in turn
            row = via_row[column]
            kept[row][column] = True
            column = via_col[row]
            if column >= 0:
                kept[row][column] = False
        in_row[row] += 1
        paths += 1
