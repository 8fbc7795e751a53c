"""How much magnitude a mask keeps, against the best mask that need not follow any pattern."""

from __future__ import annotations

import math

import torch


def largest_sum(magnitudes: torch.Tensor, count: int) -> float:
    """Sum of the ``count`` largest of the magnitudes: the best unstructured mask keeps exactly it.

    Args:
        magnitudes: a contiguous tensor of any shape, in a float dtype; reordered in place.
        count: how many.

    Complexity: O(weights) by selection, in place for float32 and float64.

    Example:
        >>> largest_sum(torch.tensor([1.0, 4.0, 2.0, 3.0]), 2)
        7.0
    """
    flat = magnitudes.reshape(-1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    values = flat.numpy()
    if count <= 0:
        return 0.0
    if count < values.size:
        values.partition(values.size - count)
    return float(values[values.size - count :].sum(dtype="float64"))


def relative(kept: float, best: float) -> float | None:
    """kept / best; 1.0 where there was nothing to lose, None where infinities hide the answer."""
    if not math.isfinite(kept) or not math.isfinite(best):
        return None
    return kept / best if best else 1.0
