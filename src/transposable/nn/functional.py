"""Masked weights and the layers over them as functions, with the gradients that recipes ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from transposable.nn.select import multiplies, selected


class _StraightThrough(torch.autograd.Function):
    """Forward: the effective weight. Backward: its gradient goes to the dense weight unchanged."""

    @staticmethod
    def forward(weight: torch.Tensor, effective: torch.Tensor) -> torch.Tensor:
        # A fresh alias: returning an input itself would make autograd treat it as that input.
        return effective.view_as(effective)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _Masked(torch.autograd.Function):
    """torch.where(mask, tensor, 0.0) by :func:`selected`, in every direction."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return selected(tensor, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Masked.apply(gradients[0], *ctx.saved_tensors), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _Masked.apply(tangents[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]


def masked(
    weight: torch.Tensor, mask: torch.Tensor, *, straight_through: bool = False
) -> torch.Tensor:
    """The weight with its pruned entries zero.

        W~ = S * W,   dL/dW = S * dL/dW~,   or dL/dW~ with ``straight_through``

    Args:
        weight: float tensor of any shape.
        mask: bool tensor of the same shape, True where the weight is kept.
        straight_through: whether pruned weights receive the gradient too (STE).

    Example:
        >>> weight = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> kept = torch.tensor([True, False])
        >>> masked(weight, kept).tolist()
        [3.0, 0.0]
        >>> masked(weight, kept, straight_through=True).sum().backward()
        >>> weight.grad.tolist()
        [1.0, 1.0]
    """
    if straight_through:
        effective: torch.Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
            weight, selected(weight, mask)
        )
        return effective
    if multiplies(weight):
        result: torch.Tensor = _Masked.apply(weight, mask)  # type: ignore[no-untyped-call]
        return result
    return torch.where(mask, weight, 0.0)


def soft_thresholded(
    weight: torch.Tensor, mask: torch.Tensor, m: int, scale: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """The kept weights, shrunk by the largest pruned magnitude of their group (S-STE).

        W~_i = scale * S_i * sign(W_i) * max(|W_i| - t_g, 0),   t_g = max of |W_j|, j in g pruned

    A weight that crosses the threshold does so at zero, so the effective weight is continuous in
    the dense one when the mask keeps the N largest of each group. The gradient is straight-through.

    Args:
        weight: [out, in, *kernel]; groups are M consecutive along ``in``.
        mask: bool, the same shape.
        m: length of a group.
        scale: number the result is multiplied with, see :func:`soft_scale`.

    Example:
        >>> weight = torch.tensor([[4.0, -3.0, 1.0, 0.5]])
        >>> kept = torch.tensor([[True, True, False, False]])
        >>> soft_thresholded(weight, kept, 4).tolist()
        [[3.0, -2.0, 0.0, 0.0]]

    Hu et al., "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training", NeurIPS
    2024; github.com/huyz2023/2by4-pretrain, sparse/utils.py.
    """
    shrunk = _shrink(weight.detach(), mask, m) * scale
    effective: torch.Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
        weight, shrunk.to(weight.dtype)
    )
    return effective


def soft_scale(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    """The scale with which the soft-thresholded weight is closest to the dense one.

        argmin_b ||W - b W~||^2 = <W, W~> / <W~, W~>;  1 where W~ is zero

    Example:
        >>> weight, kept = torch.tensor([[4.0, 2.0]]), torch.tensor([[True, False]])
        >>> soft_scale(weight, kept, 2).item()
        2.0
    """
    shrunk = _shrink(weight.detach(), mask, m).double()
    squares = shrunk.square().sum()
    best = (weight.detach() * shrunk).sum() / squares
    return torch.where(squares > 0, best, 1.0).float()


def _shrink(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    magnitude = weight.abs()
    pruned = torch.where(mask, 0.0, magnitude)
    ragged = -weight.shape[1] % m
    if ragged:
        edge = pruned.new_zeros(pruned.shape[0], ragged, *pruned.shape[2:])
        pruned = torch.cat([pruned, edge], 1)
    groups = pruned.reshape(weight.shape[0], -1, m, *weight.shape[2:])
    threshold = groups.amax(2).repeat_interleave(m, 1)[:, : weight.shape[1]]
    return torch.where(mask, weight.sign() * (magnitude - threshold).clamp(min=0), 0.0)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    straight_through: bool = False,
) -> torch.Tensor:
    """``F.linear`` with a masked weight: x (S * W)^T + b.

    Args:
        x: [..., in].
        weight: [out, in].
        mask: bool [out, in].
        bias: [out] or None.
        straight_through: see :func:`masked`.

    Example:
        >>> linear(torch.ones(1, 2), torch.ones(3, 2), torch.eye(3, 2, dtype=torch.bool)).tolist()
        [[1.0, 1.0, 0.0]]
    """
    return F.linear(x, masked(weight, mask, straight_through=straight_through), bias)


def conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int] = 1,
    padding: str | int | tuple[int] = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
    straight_through: bool = False,
) -> torch.Tensor:
    """``F.conv1d`` with a masked weight [Cout, Cin/groups, k]."""
    kept = masked(weight, mask, straight_through=straight_through)
    return F.conv1d(x, kept, bias, stride, padding, dilation, groups)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    straight_through: bool = False,
) -> torch.Tensor:
    """``F.conv2d`` with a masked weight [Cout, Cin/groups, kh, kw]."""
    kept = masked(weight, mask, straight_through=straight_through)
    return F.conv2d(x, kept, bias, stride, padding, dilation, groups)
