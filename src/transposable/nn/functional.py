"""Masked weights and the layers over them as functions, with the gradients that recipes ask for."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional as F

from transposable.nn import bits

_SMALL: Final = 8192
"""Below this a function of our own costs more than the slow selection: about 30 us both ways."""

# Both functions compute their output themselves instead of passing a tensor on, so that it is no
# view of an input, and torch.func can transform them.


class _Masked(torch.autograd.Function):
    """S * W, with S times the gradient: ``torch.where`` at the speed of :func:`bits.kept`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return bits.kept(weight, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return masked(gradients[0], mask), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (mask,) = ctx.saved_tensors
        return masked(tangents[0], mask)


class _StraightThrough(torch.autograd.Function):
    """S * W, or its soft form, whose gradient goes to the dense weight unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: torch.Tensor, mask: torch.Tensor, m: int | None, scale: torch.Tensor | float
    ) -> torch.Tensor:
        if m is None:
            return bits.kept(weight, mask)
        return (_shrink(weight, mask, m) * scale).to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None, None


def masked(
    weight: torch.Tensor, mask: torch.Tensor, *, straight_through: bool = False
) -> torch.Tensor:
    """The weight with its pruned entries zero.

        W~ = S * W,   dL/dW = S * dL/dW~,   or dL/dW~ with ``straight_through``

    Args:
        weight: float tensor of any shape.
        mask: bool tensor of the same shape, True where the weight is kept.
        straight_through: whether pruned weights receive the gradient too (STE).

    Returns:
        A new tensor. A pruned NaN or infinity is 0 in it, and in the gradient.

    Complexity: one pass forward; one pass backward, none with ``straight_through``.

    Example:
        >>> weight = torch.tensor([3.0, -1.0], requires_grad=True)
        >>> kept = torch.tensor([True, False])
        >>> masked(weight, kept).tolist()
        [3.0, 0.0]
        >>> masked(weight, kept, straight_through=True).sum().backward()
        >>> weight.grad.tolist()
        [1.0, 1.0]

    Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013 (STE).
    """
    if straight_through:
        through: torch.Tensor = _StraightThrough.apply(weight, mask, None, 1.0)  # type: ignore[no-untyped-call]
        return through
    if bits.is_recorded() or weight.numel() < _SMALL:
        return torch.where(mask, weight, 0.0)
    effective: torch.Tensor = _Masked.apply(weight, mask)  # type: ignore[no-untyped-call]
    return effective


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

    Complexity: about six passes forward, none backward.

    Example:
        >>> weight = torch.tensor([[4.0, -3.0, 1.0, 0.5]])
        >>> kept = torch.tensor([[True, True, False, False]])
        >>> soft_thresholded(weight, kept, 4).tolist()
        [[3.0, -2.0, 0.0, 0.0]]

    Hu et al., "S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training", NeurIPS
    2024, equation 8.
    """
    effective: torch.Tensor = _StraightThrough.apply(weight, mask, m, scale)  # type: ignore[no-untyped-call]
    return effective


def soft_scale(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    """The scale with which the soft-thresholded weight is closest to the dense one, 0-d float32.

        argmin_b ||W - b W~||^2 = <W, W~> / <W~, W~>;  1 where W~ is zero

    Args:
        weight, mask, m: as for :func:`soft_thresholded`.

    Example:
        >>> weight, kept = torch.tensor([[4.0, 2.0]]), torch.tensor([[True, False]])
        >>> soft_scale(weight, kept, 2).item()
        2.0

    Hu et al., NeurIPS 2024 (S-STE): the scale is found once and stays fixed.
    """
    dense = weight.detach()
    shrunk = _shrink(dense, mask, m).double()
    squares = shrunk.square().sum()
    best = (dense * shrunk).sum() / squares
    return torch.where(squares > 0, best, 1.0).float()


def _shrink(weight: torch.Tensor, mask: torch.Tensor, m: int) -> torch.Tensor:
    rows, cols, *kernel = weight.shape
    ragged = -cols % m
    grouped, members = weight, mask
    if ragged:  # groups are filled up with pruned zeros, which move no threshold
        grouped = torch.cat([weight, weight.new_zeros(rows, ragged, *kernel)], 1)
        members = torch.cat([mask, mask.new_zeros(rows, ragged, *kernel)], 1)
    shape = (rows, (cols + ragged) // m, m, *kernel)
    grouped, members = grouped.reshape(shape), members.reshape(shape)
    magnitude = grouped.abs()
    threshold = bits.pruned(magnitude, members).amax(2, keepdim=True)
    shrunk = torch.copysign((magnitude - threshold).clamp(min=0), grouped)
    flat = bits.kept(shrunk, members).reshape(rows, cols + ragged, *kernel)
    return flat[:, :cols]


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
    """``F.conv1d`` with a masked weight: x * (S * W) + b.

    Args:
        x: [batch, Cin, length] or [Cin, length].
        weight: [Cout, Cin/groups, k].
        mask: bool, the shape of the weight.
        bias: [Cout] or None.
        stride, padding, dilation, groups: as for ``F.conv1d``.
        straight_through: see :func:`masked`.

    Example:
        >>> kept = torch.tensor([[[True, False, True]]])
        >>> conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 3), kept).tolist()
        [[[2.0, 2.0]]]
    """
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
    """``F.conv2d`` with a masked weight: x * (S * W) + b.

    Args:
        x: [batch, Cin, height, width] or [Cin, height, width].
        weight: [Cout, Cin/groups, kh, kw].
        mask: bool, the shape of the weight.
        bias: [Cout] or None.
        stride, padding, dilation, groups: as for ``F.conv2d``.
        straight_through: see :func:`masked`.

    Example:
        >>> kept = torch.eye(2, dtype=torch.bool).reshape(1, 1, 2, 2)
        >>> conv2d(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 2), kept).tolist()
        [[[[2.0, 2.0]]]]
    """
    kept = masked(weight, mask, straight_through=straight_through)
    return F.conv2d(x, kept, bias, stride, padding, dilation, groups)
