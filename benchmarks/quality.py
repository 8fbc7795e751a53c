"""How good a mask is: kept magnitude tile by tile, and whether it keeps exactly N everywhere."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.inputs import as_tiles

STRIP_ENTRIES = 1 << 18


def kept_per_tile(matrix: torch.Tensor, kept: torch.Tensor, m: int) -> torch.Tensor:
    """Kept magnitude of every m x m tile, float64, row-major; sides that m divides."""
    sums = []
    height = _strip_height(matrix, m)
    for strip, mask in zip(torch.split(matrix, height), torch.split(kept, height), strict=True):
        magnitudes = as_tiles(strip, m).double().abs()
        sums.append(torch.where(as_tiles(mask, m), magnitudes, 0.0).sum((1, 2)))
    return torch.cat(sums)


def most_and_exact(kept: torch.Tensor, n: int, m: int) -> tuple[int, torch.Tensor]:
    """The most that any row or column of a tile keeps, and per tile whether all keep exactly n."""
    most, exact = 0, []
    for strip in torch.split(kept, _strip_height(kept, m)):
        tiles = as_tiles(strip, m)
        for_rows, for_cols = tiles.sum(2), tiles.sum(1)
        most = max(most, int(for_rows.max()), int(for_cols.max()))
        exact.append((for_rows == n).all(1) & (for_cols == n).all(1))
    return most, torch.cat(exact)


def _strip_height(matrix: torch.Tensor, m: int) -> int:
    """Rows whose float64 temporaries stay small, a multiple of m; narrow matrices are tall."""
    return m * max(1, STRIP_ENTRIES // (m * matrix.shape[1]))


@dataclass(frozen=True, slots=True)
class Quality:
    """A mask against the optimum, over ``tiles`` tiles."""

    tiles: int
    mean_error: float
    worst_error: float
    exactly_n: float
    valid: bool

    def as_dict(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


def compare(
    matrix: torch.Tensor, kept: torch.Tensor, best: torch.Tensor, n: int, m: int
) -> Quality:
    """(optimum - kept magnitude) / optimum per tile: mean and worst; share of exact tiles.

    ``best`` holds the optimum of each tile. A mask that keeps more than n somewhere is not valid,
    and its error means nothing: a larger mask keeps more.
    """
    sums = kept_per_tile(matrix, kept, m)
    error = (best[: len(sums)] - sums) / best[: len(sums)].clamp(min=1e-300)
    most, exact = most_and_exact(kept, n, m)
    return Quality(
        len(sums),
        error.mean().item(),
        error.max().item(),
        exact.double().mean().item(),
        most <= n,
    )
