"""The paper's 2-approximation, as published (native)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable import _core
from transposable.kernels import search, walk
from transposable.pattern import Structure
from transposable.problem import Problem
from transposable.solvers.base import Outcome, Solver
from transposable.solvers.options import check_flag


@dataclass(frozen=True)
class TwoApprox(Solver):
    """Algorithm 1 of Hubara et al. 2021: prune light entries until every line has lost enough.

        W(P) < 2 W*,   W(P) = sum of the pruned scores, W* the least possible, scores >= 0

    The entries of a tile are walked from light to heavy; (i, j) is pruned when row i or column j
    has not yet lost its quota of M - N. The pattern holds as *at most* N kept: the walk prunes more
    than it needs to, and leaves a Gaussian tile of 4:8T with a density of about 0.40. Equal scores
    are walked in row-major order. A line of a cropped tile has the quota max(length - N, 0), and
    negative scores of such a tile are always pruned; in full tiles negative scores are walked like
    any other, and then nothing bounds the result.

    Args:
        repair: afterwards refill from heavy to light where there is room, then exchange one kept
            entry for two others until every row and column of a full tile keeps exactly N. Off by
            default, which is the algorithm as published.

    The bound of a solution is sum(scores) - W(P) / 2, by the inequality above; inf when a score is
    negative.

    On a GPU (docs/gpu.md) the mask is the same, entry for entry.

    Raises:
        SolverError: if repair is not a bool.

    Complexity: O(weights * log^2 M) for the sorting networks.

    Example:
        >>> import transposable
        >>> solution = transposable.solve(torch.rand(32, 32), "4:8T", TwoApprox())
        >>> solution.status.name, solution.objective < solution.bound
        ('FEASIBLE', True)

    Source: I. Hubara et al., "Accelerated Sparse Neural Training", NeurIPS 2021, Algorithm 1 and
    Lemma 1.
    """

    repair: bool = False

    name: ClassVar[str] = "two_approx"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "the paper's 2-approximation, at most N kept"

    def __post_init__(self) -> None:
        check_flag(self.name, "repair", self.repair)

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome:
        kept, pattern = problem.mask(), problem.pattern
        arguments = (problem.matrices, kept, pattern.n, pattern.m, problem.magnitude)
        nans = walk.fill(*arguments, how="prune")
        bound = math.inf
        if certify:
            if int(nans):
                problem.check_nan()
            bound = self._bound_there(problem, kept)
        if self.repair:
            walk.fill(*arguments, how="refill")
            search.improve(*arguments, repair=True, sweeps=0)
        return Outcome(kept, bound, stats={"ran_on": str(kept.device)}, nans=nans)

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        kept = self._mask(problem, self.repair)
        bound = self._bound(problem, kept) if certify else math.inf
        return Outcome(kept, bound)

    def _mask(self, problem: Problem, repair: bool) -> torch.Tensor:
        kept = torch.empty(problem.matrices.shape, dtype=torch.bool)
        n, m = problem.pattern.n, problem.pattern.m
        _core.two_approx(problem.matrices, kept, n, m, problem.magnitude, problem.threads, repair)
        return kept

    def _bound(self, problem: Problem, kept: torch.Tensor) -> float:
        """sum(scores) - W(P) / 2, with the P of the algorithm as published."""
        matrices, magnitude, threads = problem.matrices, problem.magnitude, problem.threads
        if not magnitude and bool((matrices < 0).any()):
            return math.inf
        as_published = self._mask(problem, False) if self.repair else kept
        held = _core.kept_sum(matrices, as_published, magnitude, threads)
        pruned = _core.kept_sum(matrices, ~as_published, magnitude, threads)
        return held + pruned / 2

    def _bound_there(self, problem: Problem, as_published: torch.Tensor) -> float:
        """The same where the scores are."""
        scores = problem.scores()
        if bool((scores < 0).any()):
            return math.inf
        held = torch.where(as_published, scores, 0).sum(dtype=torch.float64)
        pruned = torch.where(as_published, 0, scores).sum(dtype=torch.float64)
        return float(held + pruned / 2)
