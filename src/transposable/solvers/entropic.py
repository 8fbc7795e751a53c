"""Entropic optimal transport, rounded (native)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable import _core
from transposable.pattern import Structure
from transposable.problem import Problem
from transposable.solvers.base import Outcome, Solver
from transposable.solvers.options import check_count, check_positive


@dataclass(frozen=True)
class Entropic(Solver):
    """Dykstra's projections on the relaxed problem, then rounding, repair and local search.

        max sum_ij S_ij a_ij - (1/tau) sum_ij S_ij (log S_ij - 1)
        s.t. sum_j S_ij = N,  sum_i S_ij = N,  0 <= S_ij <= 1

    The optimum has the form S_ij = min(1, exp(tau a_ij + u_i + v_j)). Alternating KL projections on
    row sums, column sums and the box [0, 1] find u and v; since the factors of the box projection
    are those that the cut at 1 took away, u and v are all that has to be stored. Entries are then
    kept by descending tau a_ij + u_i + v_j, and the mask is completed and improved as by
    :class:`~transposable.Greedy`. In a cropped tile the sums are at most N.

    Args:
        iterations: rounds of projections.
        tau: inverse temperature, where the typical magnitude of a tile counts as 1 (its mean
            without outliers). A larger tau is closer to the unrelaxed problem and needs more
            iterations: 16 with 200, about 40 with 800.
        sweeps: most sweeps of local search; 0 leaves it out.

    Raises:
        SolverError: if an option is out of range.

    Complexity: O(weights * iterations), about 4 operations each, on vectors of tiles.

    Example:
        >>> import transposable
        >>> transposable.find_mask(torch.rand(32, 32), "4:8T", solver=Entropic()).density
        0.5

    Source: X. Meng et al., "TSENOR", NeurIPS 2025; J.-D. Benamou et al., "Iterative Bregman
    projections for regularized transportation problems", 2015.
    """

    iterations: int = 200
    tau: float = 16.0
    sweeps: int = 20

    name: ClassVar[str] = "entropic"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "entropic transport, rounded and improved"

    def __post_init__(self) -> None:
        check_count(self.name, "iterations", self.iterations, 1)
        check_positive(self.name, "tau", self.tau, 10_000)
        check_count(self.name, "sweeps", self.sweeps, 0)

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        kept = torch.empty(problem.matrices.shape, dtype=torch.bool)
        n, m = problem.pattern.n, problem.pattern.m
        _core.entropic(
            problem.matrices,
            kept,
            n,
            m,
            problem.magnitude,
            problem.threads,
            self.iterations,
            float(self.tau),
            self.sweeps,
        )
        return Outcome(kept)
