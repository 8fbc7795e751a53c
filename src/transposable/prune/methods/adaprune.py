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
        mask = problem.find_mask(make_scores(self.scores)(problem))
        support = mask & problem.allowed
        start = problem.weight * support
        found, ridge = solve_supported(problem.gram, problem.cross, support, start, self.ridge)
        # Rounding could leave an output that the mask alone served best a little worse.
        worse = problem.error(found) > problem.error(start)
        return Pruned(torch.where(worse.unsqueeze(2), start, found), mask, {"ridge": ridge})
