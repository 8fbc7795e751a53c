"""Mask: which weights are kept, under which pattern, and whether that holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from transposable import verification
from transposable.arrays import ANYWHERE, like, to_tensor
from transposable.errors import MaskError
from transposable.layout import Layout, LayoutName
from transposable.pattern import Pattern


class Mask:
    """A boolean mask in the shape of its weight, True where the weight is kept.

    Args:
        kept: bool array in the shape of the weight (torch, numpy or DLPack), on the CPU or a GPU.
        pattern: the pattern it is meant to satisfy; :meth:`violations` says whether it does.
        layout: how the weight is read: "linear", "conv" or "stacked".
        groups: groups of a convolution.

    Raises:
        MaskError: if the array is not boolean.
        LayoutError: if its dimensions do not fit the layout.

    Example:
        >>> mask = Mask(torch.eye(4, dtype=torch.bool), "1:4T")
        >>> mask.density, mask.violations()
        (0.25, 0)
        >>> Mask.unpack(mask.pack(), mask.shape, "1:4T") == mask
        True
    """

    __slots__ = ("_source", "layout", "pattern", "tensor")

    tensor: torch.Tensor
    pattern: Pattern
    layout: Layout

    def __init__(
        self,
        kept: Any,
        pattern: str | Pattern,
        *,
        layout: LayoutName | Layout = "linear",
        groups: int = 1,
    ) -> None:
        tensor = to_tensor(kept, "Mask", ANYWHERE)
        if tensor.dtype != torch.bool:
            raise MaskError(
                f"Mask: received dtype {tensor.dtype}; a boolean array is needed; "
                "compare first, for example weight != 0"
            )
        self.pattern = Pattern.parse(pattern)
        self.layout = Layout.of(layout, groups)
        self.layout.check(tensor.shape, "Mask")
        self.tensor = tensor
        self._source = kept

    @property
    def array(self) -> Any:
        """The mask as the kind of array it was made for (torch, numpy, ...)."""
        return like(self.tensor, self._source)

    def like(self, array: Any) -> Mask:
        """The same mask, whose :attr:`array` is of the kind that ``array`` is."""
        mask = Mask(self.tensor, self.pattern, layout=self.layout)
        mask._source = array
        return mask

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self.tensor.shape

    @property
    def density(self) -> float:
        """Share of the weights that is kept; 0.0 for an empty weight."""
        return self.tensor.count_nonzero().item() / max(self.tensor.numel(), 1)

    @property
    def T(self) -> Mask:
        """The mask of the transposed weight (the last two axes; out and in channels of a conv).

        Raises:
            MaskError: if the pattern does not hold along both axes, or for a grouped convolution.
        """
        if not self.pattern.transposable:
            raise MaskError(
                f"Mask.T: {self.pattern} holds along one axis only, so the transposed mask has no "
                "such pattern; use a transposable pattern such as '2:4T', or take .tensor.mT"
            )
        if self.layout.groups > 1:
            raise MaskError(
                f"Mask.T: received a convolution of {self.layout.groups} groups; out and in "
                "channels cannot be exchanged across groups; take the mask of each group"
            )
        axes = (0, 1) if self.layout.name == "conv" else (-2, -1)
        swapped = Mask(self.tensor.transpose(*axes), self.pattern, layout=self.layout)
        return swapped.like(self._source)

    def violations(self, axis: str | None = None) -> int:
        """Number of groups that keep more than N of M: 0 when the pattern holds.

        Args:
            axis: "in" (forward contraction axis), "out" (input-gradient contraction axis) or None
                for every axis that the pattern promises.
        """
        report = self.report()
        if axis is None:
            return report.violations
        return report.axis(axis).violations

    def report(self) -> verification.Report:
        """The full report of :func:`transposable.verify`."""
        return verification.verify(
            self.tensor, self.pattern, layout=self.layout, operation="Mask.report"
        )

    def pack(self) -> bytes:
        """The mask as bits: row-major order of the weight, the first weight in the lowest bit.

        The last byte is filled with zero bits; an empty mask packs to b"".
        """
        flat = self.tensor.cpu().contiguous().reshape(-1).numpy()
        return np.packbits(flat, bitorder="little").tobytes()

    @classmethod
    def unpack(
        cls,
        data: bytes,
        shape: tuple[int, ...] | torch.Size,
        pattern: str | Pattern,
        *,
        layout: LayoutName | Layout = "linear",
        groups: int = 1,
    ) -> Mask:
        """The inverse of :meth:`pack`.

        Raises:
            MaskError: if the number of bytes does not fit this shape, or if a fill bit is set.
        """
        if any(side < 0 for side in shape):
            raise MaskError(
                f"Mask.unpack: received shape {tuple(shape)}; no side can be negative; pass the "
                "shape the mask was packed with"
            )
        count = math.prod(shape)
        if len(data) != -(-count // 8):
            raise MaskError(
                f"Mask.unpack: received {len(data)} bytes for shape {tuple(shape)}; {count} "
                f"weights take {-(-count // 8)} bytes; pass the shape the mask was packed with"
            )
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        if bits[count:].any():
            raise MaskError(
                f"Mask.unpack: a fill bit behind the last of {count} weights is set; the data does "
                "not belong to this shape, or is corrupt"
            )
        kept = torch.from_numpy(bits[:count].astype(bool)).reshape(tuple(shape))
        return cls(kept, pattern, layout=layout, groups=groups)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return (
            self.pattern == other.pattern
            and self.layout == other.layout
            and self.shape == other.shape
            and bool((self.tensor == other.tensor.to(self.tensor.device)).all())
        )

    __hash__ = None  # type: ignore[assignment]  # holds a tensor that the caller may change

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"Mask({shape}, {str(self.pattern)!r}, {self.layout.name}, density {self.density:.4f})"
        )
