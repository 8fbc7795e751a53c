"""A sample of a large layer: whole tiles, drawn without replacement, the same for the same seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch

from transposable.errors import ScoresError
from transposable.pattern import Pattern


def check_sample(sample: int | None, operation: str) -> None:
    """Raise ScoresError unless ``sample`` is None or a positive number of weights."""
    if sample is not None and (
        isinstance(sample, bool) or not isinstance(sample, int) or sample < 1
    ):
        raise ScoresError(
            f"{operation}: received sample={sample!r}; it is the number of weights to look at in "
            "each layer, an integer >= 1, or None for all of them"
        )


def tile_side(patterns: Sequence[Pattern]) -> int:
    """The least side that tiles of all these patterns fill: the least common multiple of the M.

    Example:
        >>> tile_side([Pattern.parse(p) for p in ("2:4", "4:8T", "50%")])
        8
    """
    return math.lcm(*(p.m for p in patterns if p.structure != "unstructured"))


def sample_tiles(
    matrices: torch.Tensor, side: int, most: int, seed: int, name: str
) -> torch.Tensor | None:
    """Whole tiles of about ``most`` weights together, as one matrix; None for "take it all".

    Tiles are drawn uniformly without replacement among those that no edge crops. The seed is mixed
    with the name, so that a layer's sample does not depend on the layers before it.

    Args:
        matrices: [batch, rows, cols].
        side: of a tile.
        most: number of weights, rounded down to whole tiles that fill a matrix; one at least.
        seed, name: of the random numbers.

    Returns:
        [1, down * side, across * side], about square, a copy; None if the matrices hold no more
        than ``most`` weights or no more than these tiles.
    """
    if matrices.numel() <= most:
        return None
    batch, rows, cols = matrices.shape
    down, across = rows // side, cols // side
    total, wanted = batch * down * across, max(most // side**2, 1)
    if wanted >= total:
        return None
    high = math.isqrt(wanted)
    wide = wanted // high
    wanted = high * wide
    generator = np.random.default_rng([seed, zlib.crc32(name.encode("utf-8", "surrogatepass"))])
    chosen = np.sort(generator.choice(total, wanted, replace=False))
    places = [torch.from_numpy(index) for index in np.unravel_index(chosen, (batch, down, across))]
    tiles = matrices.unfold(1, side, side).unfold(2, side, side)[places[0], places[1], places[2]]
    return (
        tiles.reshape(high, wide, side, side).transpose(1, 2).reshape(1, high * side, wide * side)
    )
