"""Provably optimal transposable masks (native)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from transposable import _core
from transposable.certificate import Potentials
from transposable.kernels import bound as bound_kernel
from transposable.kernels import exact as exact_kernel
from transposable.pattern import Structure
from transposable.problem import NanScoreError, Problem
from transposable.solvers.base import Outcome, Solver

TOLERANCE = 1e-6
"""Relative duality gap up to which a mask is called optimal."""


@dataclass(frozen=True)
class Exact(Solver):
    """The optimal transposable mask of every tile, with a proof.

        max sum S_ij a_ij   s.t.  sum_j S_ij = N,  sum_i S_ij = N,  S_ij in {0, 1}

    Dual iterations in fixed-point integers across many tiles at once settle most tiles with a
    strict separation, which is a proof; shortest augmenting paths on the columns finish the rest.
    The optimum is that of the paper's min-cost flow (Hubara et al. 2021, figure 4).

    Complexity: O(weights) memory traffic in practice; worst case O(M^4) a tile. Nothing that grows
    with the matrix is allocated beyond the mask and, when asked for, the potentials. On a GPU
    (docs/gpu.md) 4 bytes for each column of a tile are.

    Example:
        >>> import transposable
        >>> solution = transposable.solve(torch.rand(32, 32), "2:4T", solver=Exact())
        >>> solution.status.name, solution.gap < 1e-6
        ('OPTIMAL', True)
    """

    name: ClassVar[str] = "exact"
    structures: ClassVar[tuple[Structure, ...]] = ("transposable",)
    summary: ClassVar[str] = "optimal transposable mask with a certificate"
    promises_optimal: ClassVar[bool] = True
    checks_nan: ClassVar[bool] = True

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome:
        matrices, pattern = problem.matrices, problem.pattern
        batch, rows, cols = matrices.shape
        kept = problem.mask()
        arguments = (matrices, kept, pattern.n, pattern.m, problem.magnitude)
        stats: dict[str, Any] = {"ran_on": str(matrices.device)}
        if not certify:
            counters = exact_kernel.fill(*arguments)
            return Outcome(kept, optimal=True, stats=stats, nans=counters[exact_kernel.NANS])
        shape = (batch, -(-rows // pattern.m), -(-cols // pattern.m), pattern.m)
        u, v = (matrices.new_zeros(shape, dtype=torch.float64) for _ in range(2))
        paths, wide, nans = exact_kernel.fill(*arguments, u, v).tolist()
        if nans:
            problem.check_nan()
        tiles = shape[0] * shape[1] * shape[2]
        stats |= {"tiles": tiles, "paths": paths, "wide": wide}
        bound, worst = (float(x) for x in bound_kernel.dual_bound(*arguments, u, v))
        stats["worst_tile_gap"] = worst
        return Outcome(kept, bound, worst <= TOLERANCE, stats, Potentials(u, v))

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        matrices, pattern = problem.matrices, problem.pattern
        batch, rows, cols = matrices.shape
        kept = torch.empty(batch, rows, cols, dtype=torch.bool)
        u = v = None
        if certify:
            shape = (batch, -(-rows // pattern.m), -(-cols // pattern.m), pattern.m)
            u = torch.zeros(shape, dtype=torch.float64)
            v = torch.zeros(shape, dtype=torch.float64)
        stats = _core.exact(
            matrices, kept, pattern.n, pattern.m, problem.magnitude, problem.threads, u, v
        )
        if "nan_at" in stats:
            raise NanScoreError(stats["nan_at"])
        if u is None or v is None:
            return Outcome(kept, optimal=True, stats=stats)
        bound, worst = _core.dual_bound(
            matrices, kept, pattern.n, pattern.m, problem.magnitude, problem.threads, u, v
        )
        stats["worst_tile_gap"] = worst
        return Outcome(kept, bound, worst <= TOLERANCE, stats, Potentials(u, v))
