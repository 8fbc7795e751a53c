"""Families of tiles that found bugs in exact solvers: family(rng, m) -> float64 scores [m, m].

Values fit float32 (magnitude below 3.4e38, and denormals that float32 has).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.float64]
Family = Callable[[np.random.Generator, int], Tile]


def gaussian(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m))


def signed_offset(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) - 3


def zeros(rng: np.random.Generator, m: int) -> Tile:
    return np.zeros((m, m))


def all_equal(rng: np.random.Generator, m: int) -> Tile:
    return np.full((m, m), rng.standard_normal())


def ties(rng: np.random.Generator, m: int) -> Tile:
    return rng.integers(0, 3, (m, m)).astype(float)


def huge_1e30(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) * 1e30


def huge_1e38(rng: np.random.Generator, m: int) -> Tile:
    return rng.uniform(-3.4e38, 3.4e38, (m, m))


def tiny_1e_minus_30(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) * 1e-30


def denormals(rng: np.random.Generator, m: int) -> Tile:
    return rng.integers(-9, 10, (m, m)) * 2.0**-149


def rank_one(rng: np.random.Generator, m: int) -> Tile:
    return np.outer(rng.standard_normal(m), rng.standard_normal(m))


def row_scales(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) * 10.0 ** rng.uniform(-4, 4, (m, 1))


def column_scales(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) * 10.0 ** rng.uniform(-4, 4, (1, m))


def row_offsets(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) + 1000 * rng.standard_normal((m, 1))


def column_offsets(rng: np.random.Generator, m: int) -> Tile:
    return rng.standard_normal((m, m)) + 1000 * rng.standard_normal((1, m))


def ulps(rng: np.random.Generator, m: int) -> Tile:
    return 1 + rng.integers(0, 4, (m, m)) * 2.0**-23


def one_hot(rng: np.random.Generator, m: int) -> Tile:
    tile = np.zeros((m, m))
    tile[rng.integers(m), rng.integers(m)] = 1
    return tile


def permutation(rng: np.random.Generator, m: int) -> Tile:
    return np.eye(m)[rng.permutation(m)]


def hilbert(rng: np.random.Generator, m: int) -> Tile:
    return 1 / (1.0 + np.arange(m)[:, None] + np.arange(m))


def outlier(rng: np.random.Generator, m: int) -> Tile:
    tile = rng.standard_normal((m, m))
    tile[rng.integers(m), rng.integers(m)] = 1e8
    return tile


def int4_grid(rng: np.random.Generator, m: int) -> Tile:
    return rng.integers(-8, 8, (m, m)) * 0.0625


def half_zeros(rng: np.random.Generator, m: int) -> Tile:
    return np.where(rng.random((m, m)) < 0.5, 0.0, rng.standard_normal((m, m)))


def one_full_row(rng: np.random.Generator, m: int) -> Tile:
    tile = 1e-3 * rng.random((m, m))
    tile[rng.integers(m)] += 1
    return tile


def heavy_tail(rng: np.random.Generator, m: int) -> Tile:
    return np.clip(rng.standard_cauchy((m, m)), -1e6, 1e6)


def infinities(rng: np.random.Generator, m: int) -> Tile:
    tile = rng.standard_normal((m, m))
    tile[rng.random((m, m)) < 0.2] = np.inf
    tile[rng.random((m, m)) < 0.2] = -np.inf
    return tile


def all_infinite(rng: np.random.Generator, m: int) -> Tile:
    return np.where(rng.random((m, m)) < 0.5, np.inf, -np.inf)


FAMILIES: Final[dict[str, Family]] = {
    family.__name__: family
    for family in (
        gaussian,
        signed_offset,
        zeros,
        all_equal,
        ties,
        huge_1e30,
        huge_1e38,
        tiny_1e_minus_30,
        denormals,
        rank_one,
        row_scales,
        column_scales,
        row_offsets,
        column_offsets,
        ulps,
        one_hot,
        permutation,
        hilbert,
        outlier,
        int4_grid,
        half_zeros,
        one_full_row,
        heavy_tail,
        infinities,
        all_infinite,
    )
}


def tiles(name: str, seed: int, m: int, count: int) -> NDArray[np.float32]:
    """count tiles of one family as float32 [count, m, m]."""
    rng = np.random.default_rng([seed, m, sum(name.encode())])
    return np.stack([FAMILIES[name](rng, m) for _ in range(count)]).astype(np.float32)
