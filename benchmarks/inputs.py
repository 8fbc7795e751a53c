"""Inputs: the timed matrices, and the hostile families of tiles that the gate is run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

Maker = Callable[[int, int, torch.Generator], torch.Tensor]


def gaussian(size: int, seed: int) -> torch.Tensor:
    """A size x size float32 Gaussian matrix, made in place: no temporary of its size."""
    matrix = torch.empty(size, size)
    return matrix.normal_(generator=torch.Generator().manual_seed(seed))


def tie_heavy(matrix: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """The tie-heavy relatives of a Gaussian matrix."""
    generator = torch.Generator().manual_seed(seed + 1)
    dropped = torch.rand(matrix.shape, generator=generator) < 0.5
    return {
        "int4 grid": int4(matrix),
        "half zeros": matrix.masked_fill(dropped, 0.0),
        "all equal": torch.full_like(matrix, 0.37),
    }


def int4(values: torch.Tensor) -> torch.Tensor:
    """Gaussian values rounded to the 16 levels -8..7, half a standard deviation apart."""
    return (values * 2).round_().clamp_(-8, 7).mul_(0.5)


def as_matrix(tiles: torch.Tensor, across: int) -> torch.Tensor:
    """Tiles [count, m, m] laid out row by row, ``across`` to a row; across divides count."""
    count, m, _ = tiles.shape
    return tiles.reshape(-1, across, m, m).transpose(1, 2).reshape(count // across * m, across * m)


def as_tiles(matrix: torch.Tensor, m: int) -> torch.Tensor:
    """The inverse of :func:`as_matrix`: [count, m, m], for sides that m divides."""
    rows, cols = matrix.shape
    return matrix.reshape(rows // m, m, cols // m, m).transpose(1, 2).reshape(-1, m, m)


def _normal(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, m, m, generator=generator)


def _uniform(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, m, m, generator=generator)


def _signed(scale: float) -> Maker:
    def make(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
        # Magnitudes in [0.5, 1) x scale, so that 3.4e38 of float32 is not exceeded.
        sign = torch.randint(0, 2, (count, m, m), generator=generator) * 2.0 - 1.0
        return sign * (0.5 + 0.5 * _uniform(count, m, generator)) * scale

    return make


def _denormal(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    steps = torch.randint(0, 5000, (count, m, m), generator=generator, dtype=torch.int32)
    return steps.view(torch.float32)  # the bit patterns of the smallest denormals


def _mixed_denormal(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    tiny = _denormal(count, m, generator)
    return torch.where(_uniform(count, m, generator) < 0.2, _normal(count, m, generator), tiny)


def _ulp(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    one = torch.ones(count, m, m).view(torch.int32)
    return (one + torch.randint(-8, 9, one.shape, generator=generator, dtype=torch.int32)).view(
        torch.float32
    )


def _scales(axis: int) -> Maker:
    def make(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, m, 1) if axis == 1 else (count, 1, m)
        exponent = torch.rand(shape, generator=generator) * 8 - 4
        return _normal(count, m, generator) * 10**exponent

    return make


def _offsets(axis: int) -> Maker:
    def make(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, m, 1) if axis == 1 else (count, 1, m)
        return _uniform(count, m, generator) + 100 * torch.rand(shape, generator=generator)

    return make


def _rank_one(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    left = torch.randn(count, m, 1, generator=generator)
    return left * torch.randn(count, 1, m, generator=generator)


def _one_hot(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    tiles = torch.zeros(count, m * m)
    place = torch.randint(0, m * m, (count, 1), generator=generator)
    return tiles.scatter_(1, place, 1.0).reshape(count, m, m)


def _hilbert(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    index = torch.arange(m, dtype=torch.float32)
    start = torch.randint(1, 50, (count, 1, 1), generator=generator)
    return 1 / (index[:, None] + index + start)


def _outlier(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    return _normal(count, m, generator) + 1e8 * _one_hot(count, m, generator)


def _ties(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(-3, 4, (count, m, m), generator=generator).float()


def _heavy_tail(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    return _normal(count, m, generator) / _uniform(count, m, generator).clamp(min=1e-4)


def _half_zeros(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    keep = _uniform(count, m, generator) < 0.5
    return _normal(count, m, generator) * keep


HOSTILE: Final[dict[str, Maker]] = {
    "Gaussian": _normal,
    "uniform": _uniform,
    "heavy tail": _heavy_tail,
    "zeros": lambda count, m, generator: torch.zeros(count, m, m),
    "all equal": lambda count, m, generator: torch.full((count, m, m), 0.1),
    "ties": _ties,
    "int4 grid": lambda count, m, generator: int4(_normal(count, m, generator)),
    "half zeros": _half_zeros,
    "+-1e30": _signed(1e30),
    "+-1e38": _signed(3e38),
    "denormals": _denormal,
    "denormals and normals": _mixed_denormal,
    "rank one": _rank_one,
    "row scales": _scales(1),
    "column scales": _scales(2),
    "row offsets": _offsets(1),
    "column offsets": _offsets(2),
    "ulp-level": _ulp,
    "one-hot": _one_hot,
    "Hilbert": _hilbert,
    "outlier 1e8": _outlier,
}
