"""AdaPrune: kept weights, and the bias, make up for the pruned ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.prune.least_squares import solve_supported
from transposable.prune.methods.base import Method, Pruned
from transposable.prune.methods.settings import Ridge, check_ridge
from transposable.prune.problem import LayerProblem
from transposable.prune.ridge import best_ridge
from transposable.prune.scores import Scores, make_scores


@dataclass(frozen=True)
class AdaPrune(Method):
    """The best weights under a mask, exactly: least squares for every output on its support.

        min_V  f(S * V) + r ||V - W||^2   for the mask S that is best for the scores

    Attributes:
        scores: from which the mask is found: "magnitude", "wanda", "activation", "obs", a function.
        ridge: r, in units of the mean power of an input; it holds the weights near what they were.
            "auto" takes for each layer the one with which weights fitted to one half of the data
            serve the other half best: next to none where samples abound, more where they are few.

    Raises:
        MethodError: if the ridge is negative or no number, or there are no such scores.

    Complexity: k^3 / 3 operations for an output with k kept weights, or conjugate gradients on all
        of them where that is cheaper; "auto" adds ten times that for at most 24 outputs.

    Source: Hubara et al., NeurIPS 2021, whose 1,000 steps of Adam this replaces.

    Example:
        >>> AdaPrune(ridge=1e-3).ridge
        0.001
    """

    scores: str | Scores = "activation"
    ridge: Ridge = "auto"

    name: ClassVar[str] = "adaprune"
    refits_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ridge("AdaPrune", self.ridge)
        make_scores(self.scores)

    @property
    def needs_halves(self) -> bool:
        return self.ridge == "auto"

    def prune(self, problem: LayerProblem) -> Pruned:
        return fit(problem, problem.find_mask(make_scores(self.scores)(problem)), self.ridge)


def fit(problem: LayerProblem, mask: torch.Tensor, ridge: Ridge) -> Pruned:
    """The best weights on a mask [groups, rows, cols]; no output is served worse than by it alone.

    The ridge, in units of the mean diagonal of H, pulls towards the masked weights.
    """
    support = mask & problem.allowed
    chosen = best_ridge(problem, support) if ridge == "auto" else float(ridge)
    start = problem.weight * support
    found, info = solve_supported(problem.gram, problem.cross, support, start, chosen)
    # Rounding could leave an output that the mask alone served best a little worse.
    worse = problem.error(found) > problem.error(start)
    found[worse] = start[worse]
    return Pruned(found, mask, info)
