"""What a recipe is: an immutable configuration that says what happens to pruned weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from transposable.nn import Weighting
from transposable.pattern import Pattern
from transposable.train.schedules import Every, Schedule


class Recipe:
    """Base of all recipes; subclasses are frozen dataclasses whose fields are their options.

    All tensors that a recipe is given are local: a shard under FSDP, the whole weight otherwise.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def straight_through(self) -> bool:
        """Whether pruned weights receive a gradient."""
        return True

    @property
    def weighting(self) -> Weighting:
        """How layers weigh their weights while the mask is active."""
        return "masked"

    @property
    def changes_gradient(self) -> bool:
        """Whether :meth:`before_step` does anything."""
        return False

    @property
    def changes_weight(self) -> bool:
        """Whether :meth:`after_step` does anything."""
        return type(self).after_step is not Recipe.after_step

    @property
    def schedule(self) -> Schedule:
        """The refresh schedule if the user names none."""
        return Every(40)

    def check(self, pattern: Pattern, name: str) -> None:
        """Raise RecipeError when the recipe is not defined for a layer's pattern."""

    def sparse_after(self, step: int) -> bool:
        """Whether masks are active once this many optimizer steps are done."""
        return True

    def before_step(self, weight: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        """Add the recipe's term to a gradient that is complete, unscaled and clipped."""

    def after_step(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        """Change a weight after the optimizer has, or after its mask has changed."""
