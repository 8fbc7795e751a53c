"""What must hold of every matrix product before it is timed: it equals the one in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from benchmarks.gate import GateError
from benchmarks.matmul_peers import Direction, Operands

TOLERANCE: Final = 1e-6
"""Largest error of an entry, relative to the product of the lengths of its row and its column.

In that unit the rounding of float32 sums of Gaussian terms stays below 3e-7 at any length, and a
single wrong weight of a row of 4096 is about 2e-4.
"""

ROUNDING: Final = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}
"""How far storing the result in a dtype may move it, relative to itself."""


@dataclass(slots=True)
class MatmulGate:
    """What was checked."""

    products: int = 0
    entries: int = 0
    worst: float = 0.0

    def __str__(self) -> str:
        return (
            f"gate passed: {self.products:,} products ({self.entries:,} entries) equal float64's "
            f"(largest error {self.worst:.1e} of the lengths of row and column, allowed "
            f"{TOLERANCE:.0e})"
        )

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return {"products": self.products, "entries": self.entries, "worst": self.worst}

    def add(self, other: dict[str, Any]) -> None:
        """Count what another process has checked."""
        self.products += other["products"]
        self.entries += other["entries"]
        self.worst = max(self.worst, other["worst"])


class Judge:
    """The float64 products of one direction of one layer and batch."""

    def __init__(self, direction: Direction, of: Operands, report: MatmulGate) -> None:
        self.direction, self.report = direction, report
        x, dy, self._weight = of.x.double(), of.dy.double(), of.weight.double()
        self._left, self._dense = x, None
        if direction == "input_gradient":
            self._left, self._weight = dy, self._weight.t()
        elif direction == "weight_gradient":
            self._dense = dy.t() @ x
            self._scale = _lengths(dy.t(), x.t())

    def check(
        self, where: str, call: Callable[[], torch.Tensor], mask: torch.Tensor | None
    ) -> None:
        """Call, and compare every entry with the masked product (the dense one without a mask).

        Raises:
            GateError: naming the product, the first wrong entry and both values.
        """
        got = call()
        if self._dense is not None:
            reference = self._dense if mask is None else self._dense * mask
            scale = self._scale
        else:
            across = mask.t() if mask is not None and self.direction == "input_gradient" else mask
            weight = self._weight if across is None else self._weight * across
            reference, scale = self._left @ weight.t(), _lengths(self._left, weight)
        if got.shape != reference.shape:
            raise GateError(
                f"gate: {where}: the shape is {tuple(got.shape)}, not {tuple(reference.shape)}"
            )
        if mask is not None and self._dense is not None and got.masked_fill(mask, 0).any():
            raise GateError(f"gate: {where}: a pruned weight has a gradient other than zero")
        error = (got.double() - reference).abs_()
        error.sub_(reference.abs(), alpha=ROUNDING[got.dtype]).clamp_(min=0).div_(scale)
        worst = error.max().item()
        if not worst <= TOLERANCE:  # so that NaN fails too
            row, col = divmod(int(error.nan_to_num(torch.inf).argmax()), error.shape[1])
            raise GateError(
                f"gate: {where}: entry [{row}, {col}] is {got[row, col].item():.9g}, in float64 "
                f"{reference[row, col].item():.9g}: {worst:.1e} of the lengths of row and column, "
                f"allowed is {TOLERANCE:.0e}"
            )
        self.report.products += 1
        self.report.entries += got.numel()
        self.report.worst = max(self.report.worst, worst)


def _lengths(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Of every row of ``left`` times every row of ``right``; above zero."""
    return torch.outer(left.norm(dim=1), right.norm(dim=1)).clamp_(min=1e-300)
