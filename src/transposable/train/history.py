"""What a refresh of the masks did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Refresh:
    """One refresh of all masks.

    Attributes:
        step: optimizer steps done.
        flip_rate: share of the mask entries that changed.
        kept: share of the magnitude that the new masks keep.
        gap: how far the kept magnitude stays below the best masks' of the same patterns, relative;
            0.0 for solvers that find the best.
        seconds: wall time of finding the masks and storing them. Not in it: the best masks that
            the gap of another solver is measured against.

    Example:
        >>> Refresh(40, 0.01, 0.87, 0.0, 0.002).as_dict()["flip_rate"]
        0.01
    """

    step: int
    flip_rate: float
    kept: float
    gap: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The record in plain types."""
        return asdict(self)
