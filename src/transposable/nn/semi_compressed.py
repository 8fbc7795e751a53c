"""SemiLinear: a linear layer on torch's semi-structured weights, for inference on a GPU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from transposable.errors import CompressionError
from transposable.nn.modules import no_fast_path
from transposable.pattern import Pattern
from transposable.sparse.ask_semi import why_dense_semi
from transposable.sparse.inference import refuse_gradient


class SemiLinear(nn.Module):
    """A linear layer whose weight is torch's semi-structured tensor: y = x (S * W)^T + b.

    Made by :func:`compress` of layers on a GPU. The packed weight lives on that GPU: a state dict
    holds it as torch's own type, which safetensors cannot write, and it moves nowhere.

    Args:
        weight: of ``torch.sparse.to_sparse_semi_structured``, [out, in].
        pattern: of its mask.
        bias: [out] or None.

    Attributes:
        in_features, out_features: as of ``nn.Linear``.
        pattern: the :class:`~transposable.Pattern`.
        weight: buffer, the semi-structured tensor.
        bias: buffer [out], or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int
    pattern: Pattern

    def __init__(
        self, weight: torch.Tensor, pattern: Pattern, bias: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self._become_compressed(weight, pattern, bias)

    def _become_compressed(
        self, weight: torch.Tensor, pattern: Pattern, bias: torch.Tensor | None
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.pattern = pattern
        if no_fast_path not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(no_fast_path)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        parts: Any = (getattr(self.weight, name, None) for name in ("packed", "meta"))
        return sum(part.nbytes for part in parts if part is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise CompressionError(
                "SemiLinear: received an input in training mode; compressed layers are for "
                "inference only: call model.eval(), or train the sparse model that was compressed"
            )
        if x.requires_grad and torch.is_grad_enabled():
            refuse_gradient()
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(self.weight.dtype)
        rows = x.reshape(-1, x.shape[-1])
        if not rows.shape[0]:
            return x.new_empty((*x.shape[:-1], self.out_features))
        y = F.linear(rows.contiguous(), self.weight, self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}, dtype={dtype}"
        )


def why_not_semi(
    shape: tuple[int, ...], pattern: Pattern, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why torch has no semi-structured form of a weight, or None if it has."""
    if (reason := why_dense_semi(shape, pattern, dtype, device)) is not None:
        return reason
    kind = semi_class()
    limits = kind._DTYPE_SHAPE_CONSTRAINTS[dtype]
    multiples = limits.sparse_min_rows, limits.sparse_min_cols
    if any(side % multiple for side, multiple in zip(shape, multiples, strict=True)):
        return f"{shape[0]} x {shape[1]}: torch takes multiples of {multiples} (out, in)"
    return None


def semi_structured(weight: torch.Tensor) -> torch.Tensor:
    """torch's semi-structured form of a weight [out, in] with its zeros in place."""
    with warnings.catch_warnings():
        # A prototype, says torch at the first one; the tests compare its numbers.
        warnings.simplefilter("ignore", UserWarning)
        packed: torch.Tensor = semi_class().from_dense(weight.detach().contiguous())
    return packed


def semi_class() -> Any:
    """The class of torch that runs on this machine: as torch chooses it, without its flag."""
    from transposable.sparse.semi import probe

    if probe.has_cusparselt():
        return torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    return torch.sparse.SparseSemiStructuredTensorCUTLASS
