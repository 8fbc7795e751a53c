"""Methods that choose a mask and leave the kept weights as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.prune.methods.base import Method, Pruned
from transposable.prune.problem import LayerProblem
from transposable.prune.scores import Scores, make_scores


@dataclass(frozen=True)
class Magnitude(Method):
    """Keep the largest weights as they are: max sum S_ij |w_ij|.

    Complexity: one mask.

    Example:
        >>> Magnitude().needs_data
        False
    """

    name: ClassVar[str] = "magnitude"
    needs_data: ClassVar[bool] = False

    def prune(self, problem: LayerProblem) -> Pruned:
        return masked(problem, "magnitude")


@dataclass(frozen=True)
class Wanda(Method):
    """Keep the weights that matter with their inputs, as they are: max sum S_ij |w_ij| ||x_j||.

    Complexity: one mask; of the calibration, 2 samples cols^2 operations.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR
    2024; its masks of tiles are exact here.

    Example:
        >>> Wanda().needs_data
        True
    """

    name: ClassVar[str] = "wanda"

    def prune(self, problem: LayerProblem) -> Pruned:
        return masked(problem, "wanda")


def masked(problem: LayerProblem, scores: str | Scores) -> Pruned:
    """The weights under the best mask for these scores."""
    mask = problem.find_mask(make_scores(scores)(problem))
    return Pruned(problem.weight * mask, mask)
