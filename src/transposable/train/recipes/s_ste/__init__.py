"""S-STE: a soft threshold makes the pruned weight a continuous function of the dense one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.errors import RecipeError
from transposable.nn import Weighting
from transposable.pattern import Pattern
from transposable.train.recipes.base import Recipe
from transposable.train.schedules import Every, Schedule


@dataclass(frozen=True, slots=True)
class SSTE(Recipe):
    """Kept weights are shrunk by the largest pruned magnitude of their group, then rescaled.

        W~ = b * S * sign(W) * max(|W| - t, 0),   b fixed at the start, dL/dW = dL/dW~

    Published for plain 2:4, where it is continuous; with a transposable mask, or one that is not
    refreshed at every step, a weight can still jump when the mask changes.

    Example:
        >>> SSTE()
        SSTE()

    Hu et al., "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training", NeurIPS
    2024.
    """

    name: ClassVar[str] = "s-ste"
    summary: ClassVar[str] = "soft threshold: kept weights shrink by the largest pruned one"

    @property
    def weighting(self) -> Weighting:
        return "soft"

    @property
    def schedule(self) -> Schedule:
        return Every(1)

    def check(self, pattern: Pattern, name: str) -> None:
        if pattern.structure not in ("row", "transposable"):
            raise RecipeError(
                f"recipe 's-ste': layer {name!r} has pattern {pattern}; the soft threshold needs "
                "groups of M: use a pattern such as '2:4' or '2:4T', or another recipe"
            )
