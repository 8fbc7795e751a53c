"""Dense tail: the last share of the steps dense; and the switch the other way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.errors import RecipeError
from transposable.nn import Weighting
from transposable.pattern import Pattern
from transposable.train.recipes.base import Recipe
from transposable.train.schedules import Schedule


@dataclass(frozen=True, slots=True)
class _Switch(Recipe):
    """Another recipe on one side of a step, dense training on the other."""

    recipe: Recipe
    at: int

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            raise RecipeError(
                f"{type(self).__name__}: received {self.recipe!r} as the recipe of the sparse "
                "steps; give a recipe object, for example SRSTE()"
            )
        if isinstance(self.at, bool) or not isinstance(self.at, int) or self.at < 1:
            raise RecipeError(
                f"{type(self).__name__}: received at={self.at!r}; it is the number of steps before "
                "the switch, an integer >= 1"
            )

    @property
    def straight_through(self) -> bool:
        return self.recipe.straight_through

    @property
    def weighting(self) -> Weighting:
        return self.recipe.weighting

    @property
    def changes_gradient(self) -> bool:
        return self.recipe.changes_gradient

    @property
    def changes_weight(self) -> bool:
        return self.recipe.changes_weight

    @property
    def schedule(self) -> Schedule:
        return self.recipe.schedule

    def check(self, pattern: Pattern, name: str) -> None:
        self.recipe.check(pattern, name)

    def before_step(self, weight: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        self.recipe.before_step(weight, gradient, mask)

    def after_step(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        self.recipe.after_step(weight, mask)


@dataclass(frozen=True, slots=True)
class DenseTail(_Switch):
    """Sparse for the first ``at`` steps, then dense: all weights train and count.

    Args:
        recipe: the recipe of the sparse steps.
        at: number of sparse steps.

    Example:
        >>> from transposable.train.recipes import MaskedDecay
        >>> tail = DenseTail.share(MaskedDecay(), steps=600, share=1 / 6)
        >>> tail.at, tail.sparse_after(499), tail.sparse_after(500)
        (500, True, False)

    Hu et al., ICML 2024 (FST): dense fine-tuning in the last sixth of pre-training.
    """

    name: ClassVar[str] = "dense-tail"
    summary: ClassVar[str] = "another recipe, then dense for the last share of the steps"

    @classmethod
    def share(cls, recipe: Recipe, *, steps: int, share: float = 1 / 6) -> DenseTail:
        """The last ``share`` of ``steps`` optimizer steps dense."""
        if not 0 < share < 1:
            raise RecipeError(f"DenseTail: received share={share!r}; it lies between 0 and 1")
        return cls(recipe, steps - round(steps * share))

    def sparse_after(self, step: int) -> bool:
        return step < self.at and self.recipe.sparse_after(step)


@dataclass(frozen=True, slots=True)
class DenseStart(_Switch):
    """Dense for the first ``at`` steps, then another recipe, with masks of the weights of then.

    Example:
        >>> from transposable.train.recipes import Static
        >>> start = DenseStart(Static(), at=100)
        >>> start.sparse_after(99), start.sparse_after(100)
        (False, True)
    """

    name: ClassVar[str] = "dense-start"
    summary: ClassVar[str] = "dense for the first steps, then another recipe"

    def sparse_after(self, step: int) -> bool:
        return step >= self.at and self.recipe.sparse_after(step)
