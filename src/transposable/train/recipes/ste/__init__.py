"""Straight-through estimator: pruned weights are trained as if they were kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.train.recipes.base import Recipe


@dataclass(frozen=True, slots=True)
class STE(Recipe):
    """The gradient of the masked weight goes to the dense one.

        dL/dW = dL/dW~,   W~ = S * W

    Example:
        >>> STE()
        STE()

    Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013.
    """

    name: ClassVar[str] = "ste"
    summary: ClassVar[str] = "straight-through gradient to all weights"
