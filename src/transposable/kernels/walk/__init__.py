"""Masks by a walk over the scores in their order: keeping, the paper's pruning, refilling."""

from __future__ import annotations

from typing import Final, Literal

import torch

from transposable.kernels.support import Tiles, bits_of, bytes_of, current, strides_of

How = Literal["keep", "prune", "refill"]

SCHEDULES: Final = {4: (64, 4), 8: (16, 4), 16: (4, 4), 32: (1, 4)}
"""Tiles of a program, and its warps, by tile side: 8 scores a thread."""


def fill(
    matrices: torch.Tensor, kept: torch.Tensor, n: int, m: int, magnitude: bool, how: How
) -> torch.Tensor:
    """Walk the entries of every tile, into ``kept``; nothing waits for the device.

    - "keep": from heavy to light, and keep (i, j) while row i and column j hold less than n.
    - "prune": from light to heavy, and prune (i, j) while row i or column j has lost less than
      m - n, in a cropped tile its length less n (Hubara et al. 2021, Algorithm 1).
    - "refill": as "keep", but from what ``kept`` keeps already, as pruning leaves it.

    Ties in row-major order, to refill in the reverse of it (the order of the pruning walk,
    backwards). A cropped tile keeps no negative score.

    Args:
        matrices, kept, n, m, magnitude: as for :func:`transposable.kernels.exact.fill`.
        how: which walk.

    Returns:
        int32 [] on the device: tiles with a NaN, which keep nothing.

    Complexity: one pass over the two, and about 3 m rounds of a tile on random scores.
    """
    from transposable.kernels.walk import device

    tiles = Tiles.of(matrices, m)
    nans = torch.zeros((), dtype=torch.int32, device=matrices.device)
    if not tiles.count:
        return nans
    raw, kind = bits_of(matrices)
    per_program, warps = SCHEDULES[m]
    with current(raw.device):
        device.walk[(-(-tiles.count // per_program),)](
            raw, bytes_of(kept), nans, *tiles.sizes, *strides_of(raw), *strides_of(kept), n,
            M=m, T=per_program, KIND=kind, MAGNITUDE=magnitude, HOW=how, num_warps=warps,
        )  # fmt: skip
    return nans
