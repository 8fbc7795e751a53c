"""Hostile families of tiles: inputs that found bugs in exact solvers, or could.

The gate of the benchmark runs on them, and so do the tests of every solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

Maker = Callable[[int, int, int, torch.Generator], torch.Tensor]
"""(count, rows, cols, generator) -> finite scores [count, rows, cols] in float32."""


def gaussian(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, rows, cols, generator=generator)


def uniform(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, rows, cols, generator=generator)


def int4(values: torch.Tensor) -> torch.Tensor:
    """Gaussian values rounded to the 16 levels -8..7, half a standard deviation apart; in place."""
    return values.mul_(2).round_().clamp_(-8, 7).mul_(0.5)


def _heavy_tail(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    divisor = uniform(count, rows, cols, generator).clamp(min=1e-4)
    return gaussian(count, rows, cols, generator) / divisor


def _ties(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(-3, 4, (count, rows, cols), generator=generator).float()


def _half_zeros(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    keep = uniform(count, rows, cols, generator) < 0.5
    return gaussian(count, rows, cols, generator) * keep


def _huge(scale: float) -> Maker:
    def make(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
        return (2 * uniform(count, rows, cols, generator) - 1) * scale

    return make


def _denormals(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    size = (count, rows, cols)
    steps = torch.randint(0, 5000, size, generator=generator, dtype=torch.int32)
    sign = torch.randint(0, 2, size, generator=generator) * 2.0 - 1.0
    return steps.view(torch.float32) * sign  # the bit patterns of the smallest denormals


def _mixed_denormals(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    tiny = _denormals(count, rows, cols, generator)
    normal = uniform(count, rows, cols, generator) < 0.2
    return torch.where(normal, gaussian(count, rows, cols, generator), tiny)


def _rank_one(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return gaussian(count, rows, 1, generator) * gaussian(count, 1, cols, generator)


def _scales(axis: int) -> Maker:
    def make(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, rows, 1) if axis == 1 else (count, 1, cols)
        exponent = torch.rand(shape, generator=generator) * 8 - 4
        return gaussian(count, rows, cols, generator) * 10**exponent

    return make


def _offsets(axis: int) -> Maker:
    def make(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, rows, 1) if axis == 1 else (count, 1, cols)
        offset = 1000 * torch.randn(shape, generator=generator)
        return gaussian(count, rows, cols, generator) + offset

    return make


def _ulps(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    one = torch.ones(count, rows, cols).view(torch.int32)
    step = torch.randint(-8, 9, one.shape, generator=generator, dtype=torch.int32)
    return (one + step).view(torch.float32)


def _one_hot(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    order = uniform(count, rows, cols, generator).flatten(1)
    largest = order == order.amax(1, keepdim=True) if order.numel() else order
    return largest.float().reshape(count, rows, cols)


def _permutation(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    order = uniform(count, rows, cols, generator)[:, :1].argsort(2)
    line = torch.arange(rows).remainder(max(cols, 1))
    return (order == line[:, None]).float()


def _hilbert(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    index = torch.arange(rows, dtype=torch.float32)[:, None] + torch.arange(cols)
    start = torch.randint(1, 50, (count, 1, 1), generator=generator)
    return 1 / (index + start)


def _outlier(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    one = _one_hot(count, rows, cols, generator)
    return gaussian(count, rows, cols, generator) + 1e8 * one


def _one_full_row(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    full = _one_hot(count, rows, 1, generator)
    return 1e-3 * uniform(count, rows, cols, generator) + full


HOSTILE: Final[dict[str, Maker]] = {
    "gaussian": gaussian,
    "uniform": uniform,
    "signed offset": lambda *shape: gaussian(*shape) - 3,
    "heavy tail": _heavy_tail,
    "zeros": lambda count, rows, cols, generator: torch.zeros(count, rows, cols),
    "all equal": lambda count, rows, cols, generator: torch.full((count, rows, cols), 0.1),
    "ties": _ties,
    "int4 grid": lambda *shape: int4(gaussian(*shape)),
    "half zeros": _half_zeros,
    "huge 1e30": _huge(1e30),
    "huge 1e38": _huge(3.4e38),
    "denormals": _denormals,
    "denormals and normals": _mixed_denormals,
    "rank one": _rank_one,
    "row scales": _scales(1),
    "column scales": _scales(2),
    "row offsets": _offsets(1),
    "column offsets": _offsets(2),
    "ulps": _ulps,
    "one-hot": _one_hot,
    "permutation": _permutation,
    "hilbert": _hilbert,
    "outlier 1e8": _outlier,
    "one full row": _one_full_row,
}
