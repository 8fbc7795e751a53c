"""Dense linear layers through oneDNN: the fastest that torch carries on many processors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN has products of this dtype on this processor: bfloat16 needs AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch offers oneDNN's product on plain tensors."""
    return computes(dtype) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """x weight^T + bias, for x of any number of dimensions and weight [out, in]."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def weight_gradient(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """dy^T x for matrices, as a linear layer: input dy^T, weight x^T, both transposed first.

    Reading them transposed instead is up to a quarter slower, and so is oneDNN's own backward.
    """
    return product(dy.t().contiguous(), x.t().contiguous())


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous()
        rows = dy.flatten(0, -2)
        return (
            product(dy, weight.t().contiguous()),
            weight_gradient(x.flatten(0, -2), rows),
            rows.sum(0) if ctx.has_bias else None,
        )


class OneDNNLinear(nn.Module):
    """``nn.Linear`` over the same Parameters, all three products through oneDNN."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = dense.weight, dense.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return product(x, self.weight, self.bias)
        result: torch.Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def through_onednn(net: nn.Module, prefix: str = "") -> nn.Module:
    """A copy whose linear layers, those whose name starts so, run through oneDNN."""
    twin = copy.deepcopy(net)
    for name, module in list(twin.named_modules()):
        if type(module) is nn.Linear and name.startswith(prefix):
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, OneDNNLinear(module))
    return twin
