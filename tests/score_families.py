"""The benchmark's hostile families and those with infinities, for the tests."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.families import HOSTILE, Maker, gaussian, uniform


def _infinities(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    scores = gaussian(count, rows, cols, generator)
    scores[uniform(count, rows, cols, generator) < 0.2] = math.inf
    scores[uniform(count, rows, cols, generator) < 0.2] = -math.inf
    return scores


def _all_infinite(count: int, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    return torch.where(uniform(count, rows, cols, generator) < 0.5, math.inf, -math.inf)


INFINITE: Final[dict[str, Maker]] = {"infinities": _infinities, "all infinite": _all_infinite}

FAMILIES: Final[dict[str, Maker]] = {**HOSTILE, **INFINITE}


def tiles(name: str, seed: int, m: int, count: int) -> NDArray[np.float32]:
    """count tiles of one family as float32 [count, m, m]."""
    generator = torch.Generator().manual_seed(seed)
    array: NDArray[np.float32] = FAMILIES[name](count, m, m, generator).numpy()
    return array


def make_scores(name: str, rows: int, cols: int, seed: int) -> torch.Tensor:
    """One matrix [rows, cols] in float32: of a family, of |family|, or of -|family|.

    Example:
        >>> make_scores("-|ties|", 5, 5, 0).max() <= 0
        tensor(True)
    """
    generator = torch.Generator().manual_seed(seed)
    scores = FAMILIES[name.strip("-|")](1, rows, cols, generator)[0]
    if "|" in name:
        scores = scores.abs()
    return -scores if name.startswith("-") else scores
