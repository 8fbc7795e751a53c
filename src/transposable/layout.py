"""How a weight tensor is read as matrices whose tiles carry the pattern, and the exact way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import torch

from transposable.errors import LayoutError

LayoutName = Literal["linear", "conv", "stacked"]

_RULES: Final[dict[str, str]] = {
    "linear": "2-D [out, in]",
    "conv": "3-D, 4-D or 5-D [out channels, in channels / groups, *kernel]",
    "stacked": "3-D or more, [*batch, out, in]",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The reading of a bare tensor as a batch of GEMM matrices [batch, rows, cols].

    The forward pass contracts over the columns, the input gradient over the rows.

    - "linear": [out, in], one matrix.
    - "conv": [Cout, Cin/groups, *kernel], one matrix [Cout/groups, Cin/groups] for each (group,
      kernel position): what both implicit GEMMs contract over in channels-last.
    - "stacked": [*batch, out, in], for example the experts of a mixture.

    Example:
        >>> weight = torch.zeros(16, 8, 3, 3)
        >>> conv = Layout("conv")
        >>> conv.matrices(weight).shape
        torch.Size([9, 16, 8])
        >>> conv.restore(conv.matrices(weight), weight.shape).shape
        torch.Size([16, 8, 3, 3])
    """

    name: LayoutName = "linear"
    groups: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in _RULES:
            raise LayoutError(
                f"Layout: received {self.name!r}; the layouts are 'linear', 'conv' and 'stacked'"
            )
        if isinstance(self.groups, bool) or not isinstance(self.groups, int) or self.groups < 1:
            raise LayoutError(
                f"Layout: received groups={self.groups!r}; it must be an integer >= 1"
            )
        if self.groups > 1 and self.name != "conv":
            raise LayoutError(
                f"Layout: received groups={self.groups} with layout {self.name!r}; only "
                "convolutions have groups; use layout='conv'"
            )

    @classmethod
    def of(cls, layout: LayoutName | Layout, groups: int = 1) -> Layout:
        """A Layout from its name, or the Layout itself."""
        return layout if isinstance(layout, Layout) else cls(layout, groups)

    def check(self, shape: torch.Size | tuple[int, ...], operation: str) -> None:
        """Raise LayoutError when a tensor of this shape cannot be read in this layout."""
        ndim = len(shape)
        fits = {"linear": ndim == 2, "conv": 3 <= ndim <= 5, "stacked": ndim >= 3}[self.name]
        if not fits:
            others = [name for name in _RULES if name != self.name]
            raise LayoutError(
                f"{operation}: received a {ndim}-D tensor of shape {tuple(shape)} with layout "
                f"{self.name!r}, which needs {_RULES[self.name]}; reshape it or pass "
                f"layout={others[0]!r} or layout={others[1]!r}"
            )
        if shape[0] % self.groups:
            raise LayoutError(
                f"{operation}: received {shape[0]} output channels and groups={self.groups}; the "
                "groups must divide the output channels; pass the groups of the convolution"
            )

    def matrices(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as [batch, rows, cols]: a view where strides allow, else a copy."""
        if self.name == "linear":
            return tensor.unsqueeze(0)
        if self.name == "stacked":
            return tensor.flatten(0, -3)
        out, per_group, *kernel = tensor.shape
        split = tensor.reshape(self.groups, out // self.groups, per_group, *kernel)
        batch_first = split.permute(0, *range(3, split.ndim), 1, 2)
        batch = self.groups * math.prod(kernel)  # -1 would be ambiguous for an empty tensor
        return batch_first.reshape(batch, out // self.groups, per_group)

    def restore(self, matrices: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """The exact inverse of :meth:`matrices` for a tensor of the given shape, contiguous."""
        return self.arrange(matrices, shape).contiguous()

    def arrange(self, matrices: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """As :meth:`restore`, in any memory order: a view where strides allow."""
        if self.name != "conv":
            return matrices.reshape(shape)
        out, per_group, *kernel = shape
        batch_first = matrices.reshape(self.groups, *kernel, out // self.groups, per_group)
        last = batch_first.ndim - 1
        split = batch_first.permute(0, last - 1, last, *range(1, last - 1))
        return split.reshape(shape)

    def index(
        self, place: tuple[int, int, int], shape: torch.Size | tuple[int, ...]
    ) -> tuple[int, ...]:
        """Where element (batch, row, col) of the matrices lies in a tensor of the given shape.

        Example:
            >>> Layout("conv").index((5, 2, 1), (16, 8, 3, 3))
            (2, 1, 1, 2)
        """
        batch, row, col = place
        if self.name == "linear":
            return (row, col)
        if self.name == "stacked":
            return (*_unravel(batch, tuple(shape[:-2])), row, col)
        group, *position = _unravel(batch, (self.groups, *shape[2:]))
        return (group * (shape[0] // self.groups) + row, col, *position)


def _unravel(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    result = []
    for size in reversed(shape):
        index, digit = divmod(index, size)
        result.append(digit)
    return tuple(reversed(result))


def blocks(matrices: torch.Tensor, m: int) -> torch.Tensor:
    """[batch, rows, cols] as tiles [batch, ceil(rows/m), ceil(cols/m), m, m], zero-padded.

    Example:
        >>> blocks(torch.ones(1, 3, 5), 4).shape
        torch.Size([1, 1, 2, 4, 4])
    """
    batch, rows, cols = matrices.shape
    down, across = -(-rows // m), -(-cols // m)
    padded = matrices.new_zeros(batch, down * m, across * m)
    padded[:, :rows, :cols] = matrices
    return padded.reshape(batch, down, m, across, m).transpose(2, 3)


def unblocks(tiles: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """The inverse of :func:`blocks`, cropped to rows x cols."""
    batch, down, across, m, _ = tiles.shape
    return tiles.transpose(2, 3).reshape(batch, down * m, across * m)[:, :rows, :cols]
