"""A fixed mask: pruned weights are zero and stay zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.nn import bits
from transposable.train.recipes.base import Recipe
from transposable.train.schedules import Never, Schedule


@dataclass(frozen=True, slots=True)
class Static(Recipe):
    """Prune once, train what is kept.

        W_0 = S * W_dense,   dL/dW = S * dL/dW~,   W_t = S * W_t after every step

    The last assignment undoes what optimizers do without a gradient, such as momentum from before
    the pruning.

    Example:
        >>> Static()
        Static()

    Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021; Hubara et al., NeurIPS 2021
    (static masks).
    """

    name: ClassVar[str] = "static"
    summary: ClassVar[str] = "fixed mask; pruned weights are zero and stay zero"

    @property
    def straight_through(self) -> bool:
        return False

    @property
    def schedule(self) -> Schedule:
        return Never()

    def after_step(self, weight: torch.Tensor, mask: torch.Tensor) -> None:
        bits.keep_(weight, mask)
