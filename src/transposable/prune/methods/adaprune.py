"""AdaPrune: kept weights, and the bias, make up for the pruned ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.prune.least_squares import solve_supported
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.problem import LayerProblem
from transposable.prune.scores import Scores, make_scores


@dataclass(frozen=True)
class AdaPrune(Method):
    """The best weights under a mask, exactly: least squares for every output on its support."""

    scores: str | Scores = "activation"
    ridge: float = 1e-2

    name: ClassVar[str] = "adaprune"
    refits_bias: ClassVar[bool] = True

    def prune(self, problem: LayerProblem) -> Pruned:
        return fit(problem, problem.find_mask(make_scores(self.scores)(problem)), self.ridge)


def fit(problem: LayerProblem, mask: torch.Tensor, ridge: float) -> Pruned:
    """The best weights on a mask [groups, rows, cols]; no output is served worse than by it alone.

    The ridge, in units of the mean diagonal of H, pulls towards the masked weights.
    """
    support = mask & problem.allowed
    start = problem.weight * support
    found, info = solve_supported(problem.gram, problem.cross, support, start, ridge)
    # Rounding could leave an output that the mask alone served best a little worse.
    worse = problem.error(found) > problem.error(start)
    found[worse] = start[worse]
    return Pruned(found, mask, info)
