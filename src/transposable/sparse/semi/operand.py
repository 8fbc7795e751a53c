"""What tensor cores multiply by: a weight with two of four kept, in one of the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional as F

from transposable.pattern import Pattern

GROUP: Final = 4
KEPT: Final = 2

TOKEN_MULTIPLE: Final = 8
"""Rows of the dense operand are filled up with zeros to a multiple of this."""

DTYPES: Final = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a product is carried out: all that may be tuned. It changes rounding at most.

    Attributes:
        alg_id, split_k, split_k_mode: as ``torch._cslt_sparse_mm`` takes them.
        fused_bias: whether the library adds the bias, or a kernel after it.

    Example:
        >>> Algorithm().split_k
        1
    """

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1
    fused_bias: bool = True


@dataclass(frozen=True, slots=True)
class Operand:
    """A packed matrix [rows, cols], the left factor of a product.

    Attributes:
        values: of a format's own shape; the metadata may be part of it.
        meta: which two of four; empty where it is part of ``values``.
        rows, cols: of the matrix.
    """

    values: torch.Tensor
    meta: torch.Tensor
    rows: int
    cols: int

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.values.nbytes + self.meta.nbytes


def hardware_pattern(pattern: Pattern) -> bool:
    """Whether a mask of this pattern has at most two of every four consecutive weights of a row.

    Example:
        >>> [hardware_pattern(Pattern.parse(p)) for p in ("2:4T", "1:2", "1:4T", "4:8T", "2:4S")]
        [True, True, True, False, False]
    """
    if pattern.structure not in ("row", "transposable") or GROUP % pattern.m:
        return False
    return GROUP // pattern.m * pattern.n <= KEPT


def masked(
    weight: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    *,
    transposed: bool = False,
    good: torch.Tensor | None = None,
) -> torch.Tensor:
    """S * W in a dtype, contiguous; transposed W^T. Pruned weights may be anything, NaN included.

    With ``good``, a 0-d bool, the first row is NaN where that is False.

    Example:
        >>> weight = torch.tensor([[1.0, float("nan")], [3.0, 4.0]])
        >>> masked(weight, torch.tensor([[True, False], [True, True]]), torch.float16).tolist()
        [[1.0, 0.0], [3.0, 4.0]]
    """
    # The cast first: it halves what the second pass reads and writes.
    kept = torch.where(mask, weight.detach().to(dtype), 0.0)
    kept = kept.t().contiguous() if transposed else kept.contiguous()
    if good is not None:
        kept[0] = torch.where(good, kept[0], torch.nan)
    return kept


def fits(mask: torch.Tensor) -> torch.Tensor:
    """Whether no four consecutive entries of a row keep more than two: a 0-d bool, not waited for.

    Example:
        >>> fits(torch.tensor([[True, True, False, False], [True, True, True, False]]))
        tensor(False)
    """
    rows, cols = mask.shape
    counts = mask.reshape(rows, cols // GROUP, GROUP).sum(-1, dtype=torch.int32)
    return (counts <= KEPT).all()


def filled_up(x: torch.Tensor, multiple: int = TOKEN_MULTIPLE) -> torch.Tensor:
    """[tokens, size] as the kernels want it: contiguous, aligned, tokens a multiple of 8.

    Example:
        >>> filled_up(torch.ones(3, 2)).shape
        torch.Size([8, 2])
    """
    missing = -x.shape[0] % multiple
    if missing:
        return F.pad(x, (0, 0, 0, missing))
    return aligned(x.contiguous())


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it, at an address that 16-byte loads can read."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
