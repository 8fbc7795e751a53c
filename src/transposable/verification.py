"""Does a weight or a mask satisfy a pattern, along which axis, and where not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from transposable.arrays import ANYWHERE, to_tensor
from transposable.errors import MaskError
from transposable.layout import Layout, LayoutName
from transposable.pattern import Pattern

MAX_PLACES: Final = 1000
"""Places of violations listed per axis; the count is always complete."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group that keeps too much: the index of its first weight in the tensor, and its count."""

    index: tuple[int, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class AxisReport:
    """One axis: "in" is contracted by the forward pass, "out" by the input gradient."""

    axis: str
    required: bool
    groups: int
    violations: int
    most_kept: int
    exact: float
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`verify` found; true in a boolean context when the pattern holds."""

    pattern: Pattern
    shape: tuple[int, ...]
    density: float
    axes: tuple[AxisReport, ...]

    @property
    def ok(self) -> bool:
        """Whether the pattern holds along every axis that it promises."""
        return self.violations == 0

    @property
    def violations(self) -> int:
        """Violated groups along the axes that the pattern promises."""
        return sum(axis.violations for axis in self.axes if axis.required)

    def axis(self, name: str) -> AxisReport:
        """The report of one axis, "in" or "out" ("all" for an unstructured pattern)."""
        for axis in self.axes:
            if axis.axis == name:
                return axis
        names = ", ".join(repr(axis.axis) for axis in self.axes)
        raise MaskError(f"Report.axis: received {name!r}; the axes of {self.pattern} are {names}")

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        lines = [
            f"{self.pattern} on {shape}: {'holds' if self.ok else 'violated'}, "
            f"density {self.density:.4f}"
        ]
        for axis in self.axes:
            note = "" if axis.required else "  (not promised by this pattern)"
            lines.append(
                f"  {axis.axis:<4}{axis.violations:>12,} of {axis.groups:,} groups violated, "
                f"most kept {axis.most_kept}{note}"
            )
            lines += [f"      at {place.index}: keeps {place.kept}" for place in axis.places[:5]]
            if axis.violations > 5:
                lines.append(f"      and {axis.violations - min(5, len(axis.places)):,} more")
        return "\n".join(lines)


def verify(
    weight_or_mask: Any,
    pattern: str | Pattern,
    *,
    layout: LayoutName | Layout = "linear",
    groups: int = 1,
    operation: str = "verify",
) -> Report:
    """Count the groups of M that keep (hold non-zero) more than N, along both axes.

    A group at a ragged edge is shorter than M and may keep at most N as well. For a sequential
    pattern the kept weights of a group must also be consecutive. For "P%" the one group is the
    whole tensor.

    Args:
        weight_or_mask: a weight, a bool array or a :class:`transposable.Mask` (its layout is used).
        pattern: for example "2:4T".
        layout: how a bare tensor is read: "linear", "conv" or "stacked".
        groups: groups of a convolution.

    Returns:
        A :class:`Report`: true when the pattern holds along the axes it promises ("in" for plain
        N:M, both for N:MT); the other axis is reported for information.

    Complexity: O(weights), one bool copy of the tensor.

    Example:
        >>> report = verify(torch.eye(8), "1:4T")
        >>> report.ok, report.axis("in").violations, report.axis("out").violations
        (True, 0, 0)
        >>> verify(torch.ones(4, 4), "2:4").axis("in").places[0]
        Place(index=(0, 0), kept=4)
    """
    pattern = Pattern.parse(pattern)
    if hasattr(weight_or_mask, "tensor") and hasattr(weight_or_mask, "layout"):
        held = weight_or_mask.layout
        if isinstance(held, Layout):  # a Mask; mask.py imports this module, not the reverse
            layout = held
        weight_or_mask = weight_or_mask.tensor
    tensor = to_tensor(weight_or_mask, operation, ANYWHERE)
    read = Layout.of(layout, groups)
    read.check(tensor.shape, operation)
    # NaN counts as kept: it is not zero. Comparing a mask with 0 would go through int64.
    kept = tensor if tensor.dtype == torch.bool else tensor != 0
    density = kept.count_nonzero().item() / max(kept.numel(), 1)
    if pattern.structure == "unstructured":
        axes: tuple[AxisReport, ...] = (_whole(kept, pattern),)
    else:
        matrices = read.matrices(kept)
        axes = (
            _along("in", matrices, read, tensor.shape, pattern, required=True),
            _along("out", matrices, read, tensor.shape, pattern, required=pattern.transposable),
        )
    return Report(pattern, tuple(tensor.shape), density, axes)


def _whole(kept: torch.Tensor, pattern: Pattern) -> AxisReport:
    count = int(kept.count_nonzero())
    allowed = -(-kept.numel() * pattern.n // pattern.m)
    violated = count > allowed
    places = (Place((0,) * kept.ndim, count),) if violated else ()
    return AxisReport("all", True, 1, int(violated), count, float(count == allowed), places)


def _along(
    axis: str,
    matrices: torch.Tensor,
    layout: Layout,
    shape: torch.Size,
    pattern: Pattern,
    *,
    required: bool,
) -> AxisReport:
    n, m = pattern.n, pattern.m
    lines = matrices if axis == "in" else matrices.transpose(1, 2)
    batch, count, length = lines.shape
    groups = -(-length // m)
    padded = lines.new_zeros(batch, count, groups * m)
    padded[:, :, :length] = lines
    grouped = padded.reshape(batch, count, groups, m)
    sums = grouped.sum(-1, dtype=torch.int16)
    bad = sums > n
    if pattern.structure == "sequential" and axis == "in":
        bad |= _runs(grouped) > 1
    full = sums[:, :, : length // m]
    exact = int((full == n).count_nonzero()) / full.numel() if full.numel() else 1.0
    where = bad.nonzero()[:MAX_PLACES]
    held_there = sums[where.unbind(1)].tolist()
    places = []
    for (b, line, group), held in zip(where.tolist(), held_there, strict=True):
        row, col = (line, group * m) if axis == "in" else (group * m, line)
        places.append(Place(layout.index((b, row, col), shape), held))
    most = int(sums.max()) if sums.numel() else 0
    return AxisReport(
        axis, required, sums.numel(), int(bad.count_nonzero()), most, exact, tuple(places)
    )


def _runs(grouped: torch.Tensor) -> torch.Tensor:
    """Number of runs of consecutive kept weights in each group."""
    starts = grouped[..., 1:] & ~grouped[..., :-1]
    return starts.sum(-1) + grouped[..., 0]
