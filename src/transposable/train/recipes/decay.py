"""What SR-STE and masked decay share: a decay of pruned weights in the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from transposable.errors import RecipeError
from transposable.nn import bits
from transposable.train.recipes.base import Recipe


@dataclass(frozen=True, slots=True)
class GradientDecay(Recipe):
    """G = dL/dW~ + decay * (1 - S) * W."""

    decay: float

    def __post_init__(self) -> None:
        value = self.decay
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            raise RecipeError(
                f"{type(self).__name__}: received decay={value!r}; it must be a finite number >= 0"
            )

    @property
    def changes_gradient(self) -> bool:
        return self.decay > 0

    def before_step(self, weight: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        gradient.add_(bits.pruned(weight, mask), alpha=self.decay)
