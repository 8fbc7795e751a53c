"""SR-STE: straight-through estimator with a decay of the pruned weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.train.recipes.decay import GradientDecay


@dataclass(frozen=True, slots=True)
class SRSTE(GradientDecay):
    """Straight-through gradient plus a pull of pruned weights to zero.

        G = dL/dW~ + decay * (1 - S) * W

    Added once per optimizer step; the card says where the published code differs.

    Args:
        decay: the paper's lambda.

    Example:
        >>> SRSTE()
        SRSTE(decay=0.0002)

    Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", ICLR
    2021; github.com/NM-sparsity/NM-sparsity, devkit/sparse_ops.
    """

    name: ClassVar[str] = "sr-ste"
    summary: ClassVar[str] = "straight-through gradient, decay of pruned weights in the gradient"

    decay: float = 2e-4
