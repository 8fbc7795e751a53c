"""Masked decay, the recipe of FST for pre-training transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.train.recipes.decay import GradientDecay


@dataclass(frozen=True, slots=True)
class MaskedDecay(GradientDecay):
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
