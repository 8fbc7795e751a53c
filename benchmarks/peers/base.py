"""What a peer is: a solver of many tiles at once, with a sample size that takes about a second."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch


class Peer(ABC):
    """One row of the table of peers.

    Attributes:
        name: short key in the results file.
        label: the row's name.
        exact: whether it claims the optimum (up to its integer or float resolution).
        whole: whether it takes a matrix [rows, cols]; else it takes tiles [count, m, m].
        needs: modules it cannot do without.
        sample: tiles per timed round for m = 4, 8, 16, 32; None: the whole matrix.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    exact: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    sample: ClassVar[Mapping[int, int] | None] = None

    def missing(self) -> str | None:
        """Why it cannot be run here, or None."""
        absent = [module for module in self.needs if importlib.util.find_spec(module) is None]
        if absent:
            return f"{', '.join(absent)} not installed; pip install 'transposable[bench]'"
        return None

    def tiles(self, m: int, available: int, quick: bool) -> int:
        """Tiles per timed round, at most ``available``."""
        if self.sample is None:
            return available
        # Between the listed sizes a tile's cost grows at least with its entries.
        listed = max((size for size in self.sample if size <= m), default=min(self.sample))
        count = max(1, self.sample[listed] * listed * listed // (m * m))
        return min(max(1, count // 32) if quick else count, available)

    @abstractmethod
    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        """Solve; scores are magnitudes, float32 (a weight if ``whole``); returns a bool mask."""


def integer_scores(tiles: torch.Tensor, bits: int) -> torch.Tensor:
    """Tiles as int64, each scaled by the power of two that puts its largest just under 2^bits."""
    values = tiles.double()
    largest = values.abs().amax((1, 2), keepdim=True)
    _, exponent = torch.frexp(torch.where(largest > 0, largest, 1.0))
    # In two steps: 2^(bits - exponent) alone overflows for denormals.
    half = torch.div(bits - exponent, 2, rounding_mode="floor")
    scaled = torch.ldexp(torch.ldexp(values, half), bits - exponent - half)
    return scaled.round_().long()
