"""The sparse twin of transformers' Conv1D, a linear layer that stores its weight [in, out]."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from transposable.nn.layer import SparseLayer
from transposable.pattern import Pattern
from transposable.solvers import Solver


class SparseConv1D(SparseLayer, Conv1D):  # type: ignore[misc]
    """transformers' ``Conv1D`` (GPT-2's linear layer) whose weight [in, out] is masked.

    The pattern holds for the transposed weight [out, in], as for every linear layer.

    Example:
        >>> layer = SparseConv1D(8, 16, pattern="2:4")  # 8 out, 16 in
        >>> layer.mask.shape, layer.as_mask().shape, layer.as_mask().violations()
        (torch.Size([16, 8]), torch.Size([8, 16]), 0)
    """

    dense_class: ClassVar[type[nn.Module]] = Conv1D
    stored_in_out: ClassVar[bool] = True

    def __init__(
        self, nf: int, nx: int, *, pattern: str | Pattern, solver: str | Solver = "auto"
    ) -> None:
        Conv1D.__init__(self, nf, nx)  # type: ignore[no-untyped-call]
        self._convert(self, pattern, solver, type(self).__name__)

    def dense_forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), weight)
        return flat.view(*x.shape[:-1], self.nf)

    def __repr__(self) -> str:
        return f"SparseConv1D(nf={self.nf}, nx={self.nx}, pattern={self.pattern})"
