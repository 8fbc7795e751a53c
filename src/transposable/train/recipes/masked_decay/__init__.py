"""Masked decay, the recipe of FST for pre-training transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from transposable.nn import bits
from transposable.train.recipes.base import Recipe, check_factor


@dataclass(frozen=True, slots=True)
class MaskedDecay(Recipe):
    """Straight-through gradient; pruned weights decay through the optimizer's moments.

        G = dL/dW~ + decay * (1 - S) * W,   before Adam's moments, after clipping

    Args:
        decay: lambda_W.

    Example:
        >>> MaskedDecay(6e-5)
        MaskedDecay(decay=6e-05)

    Hu et al., "Accelerating Transformer Pre-training with 2:4 Sparsity", ICML 2024;
    github.com/huyz2023/2by4-pretrain, sparse/decay.py.
    """

    name: ClassVar[str] = "masked-decay"
    summary: ClassVar[str] = "FST: decay of pruned weights before the optimizer's moments"

    decay: float = 6e-5

    def __post_init__(self) -> None:
        check_factor("MaskedDecay", "decay", self.decay)

    @property
    def changes_gradient(self) -> bool:
        return self.decay > 0

    def before_step(self, weight: torch.Tensor, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        gradient.add_(bits.pruned(weight, mask), alpha=self.decay)
