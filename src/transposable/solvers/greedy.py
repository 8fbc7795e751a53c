"""Greedy masks with repair and local search (native)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable import _core
from transposable.kernels import search, walk
from transposable.pattern import Structure
from transposable.problem import Problem
from transposable.solvers.base import Outcome, Solver
from transposable.solvers.options import check_count, check_flag


@dataclass(frozen=True)
class Greedy(Solver):
    """Heavy scores first, then repair to exactly N, then exchanges between rows.

    1. Entries are walked from heavy to light and kept while row and column hold less than N:
       ``Greedy(repair=False, sweeps=0)`` is what PyTorch's tile kernel calls
       ``largest_abs_values_greedy``. Ties go to the earlier entry in row-major order. A cropped
       tile keeps no negative score.
    2. Where a row i and a column l of a full tile are left with less than N, the best exchange
       (drop (k, j), keep (i, j) and (k, l)) mends both; one always exists.
    3. Sweeps over all pairs of rows (i, k): if it gains, row i gives a column to row k for another
       one. After a sweep without a gain no exchange of 2 x 2 entries improves the mask.

    Args:
        repair: do step 2, so that full tiles keep exactly N per row and column.
        sweeps: most sweeps of step 3; 0 leaves it out. Usually three to six suffice.

    On a GPU (docs/gpu.md) the mask is the same, entry for entry.

    Raises:
        SolverError: if repair is not a bool or sweeps no integer >= 0.

    Complexity: O(weights * log^2 M) for sorting, O(weights * M) for a sweep.

    Example:
        >>> import transposable
        >>> transposable.find_mask(torch.rand(32, 32), "2:4T", solver=Greedy(sweeps=4)).density
        0.5

    Source: the greedy walk is that of apex and PyTorch; the exchanges are standard local search.
    """

    repair: bool = True
    sweeps: int = 20

    name: ClassVar[str] = "greedy"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "largest first, repair, local search"

    def __post_init__(self) -> None:
        check_flag(self.name, "repair", self.repair)
        check_count(self.name, "sweeps", self.sweeps, 0)

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome:
        kept, pattern = problem.mask(), problem.pattern
        arguments = (problem.matrices, kept, pattern.n, pattern.m, problem.magnitude)
        nans = walk.fill(*arguments, how="keep")
        if self.repair or self.sweeps:
            search.improve(*arguments, repair=self.repair, sweeps=self.sweeps)
        return Outcome(kept, stats={"ran_on": str(kept.device)}, nans=nans)

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        kept = torch.empty(problem.matrices.shape, dtype=torch.bool)
        n, m = problem.pattern.n, problem.pattern.m
        _core.greedy(
            problem.matrices,
            kept,
            n,
            m,
            problem.magnitude,
            problem.threads,
            self.repair,
            self.sweeps,
        )
        return Outcome(kept)
