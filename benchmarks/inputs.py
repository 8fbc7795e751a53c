"""Inputs: the timed matrices, and tiles laid out as a matrix."""

from __future__ import annotations

import torch

from benchmarks.families import int4


def gaussian(size: int, seed: int) -> torch.Tensor:
    """A size x size float32 Gaussian matrix, made in place: no temporary of its size."""
    matrix = torch.empty(size, size)
    return matrix.normal_(generator=torch.Generator().manual_seed(seed))


def tie_heavy(matrix: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The tie-heavy relatives of a Gaussian matrix."""
    generator = torch.Generator().manual_seed(seed + 1)
    dropped = torch.rand(matrix.shape, generator=generator) < 0.5
    return {
        "int4 grid": int4(matrix.clone()),
        "half zeros": matrix.masked_fill(dropped, 0.0),
        "all equal": torch.full_like(matrix, 0.37),
    }


def as_matrix(tiles: torch.Tensor, across: int) -> torch.Tensor:
    """Tiles [count, m, m] laid out row by row, ``across`` to a row; across divides count."""
    count, m, _ = tiles.shape
    return tiles.reshape(-1, across, m, m).transpose(1, 2).reshape(count // across * m, across * m)


def as_tiles(matrix: torch.Tensor, m: int) -> torch.Tensor:
    """The inverse of :func:`as_matrix`: [count, m, m], for sides that m divides."""
    rows, cols = matrix.shape
    return matrix.reshape(rows // m, m, cols // m, m).transpose(1, 2).reshape(-1, m, m)
