"""Masks of a walk made complete and better: repair by exchanges, then local search."""

from __future__ import annotations

from typing import Final

import torch

from transposable.kernels.support import Tiles, bits_of, bytes_of, current, strides_of

SCHEDULES: Final = {4: (8, 1), 8: (4, 1), 16: (2, 1), 32: (1, 8)}
"""Tiles of a program, and its warps, by tile side: a thread has a row, and waits for no other warp.

A row of 32 would need more registers than there are.
"""

MOST_SWEEPS: Final = 2**31 - 1


def improve(
    matrices: torch.Tensor,
    kept: torch.Tensor,
    n: int,
    m: int,
    magnitude: bool,
    *,
    repair: bool,
    sweeps: int,
) -> None:
    """Improve masks of :func:`transposable.kernels.walk.fill`, in place; nothing waits.

    The steps of the native solvers, with their order, their ties and their float32 arithmetic, so
    that the masks are theirs, entry for entry. Scores are first scaled to a largest finite
    magnitude in [0.5, 1), infinities to +-2^14.

    1. ``repair``: while a row i of a full tile holds less than n, make the best exchange

           a_kl + a_ij - a_kj,   (k, j) kept, (k, l) and (i, j) pruned, column l less than n

    2. ``sweeps``: for every pair of rows, row i gives a column to row k for another one where

           (a_ij - a_kj) - (a_il - a_kl) > 0,   (i, l) and (k, j) kept, (i, j) and (k, l) pruned

       until a sweep gains nothing, at most so many times; then in cropped tiles likewise single
       entries are added, or moved within their row or column, and negative ones dropped.

    Args:
        matrices, n, m, magnitude: as for :func:`transposable.kernels.exact.fill`.
        kept: what a walk that keeps or refills wrote for them, so that no tile has room; those with
            a NaN keep nothing, and that is left so.

    Complexity: one pass over the two; 2 m - 3 steps of a whole tile for a sweep.
    """
    from transposable.kernels.search import device

    tiles = Tiles.of(matrices, m)
    if not tiles.count:
        return
    raw, kind = bits_of(matrices)
    per_program, warps = SCHEDULES[m]
    with current(raw.device):
        device.search[(-(-tiles.count // per_program),)](
            raw, bytes_of(kept), *tiles.sizes, *strides_of(raw), *strides_of(kept), n,
            min(sweeps, MOST_SWEEPS), M=m, T=per_program, KIND=kind, MAGNITUDE=magnitude,
            REPAIR=repair, SWEEP=sweeps > 0, num_warps=warps,
        )  # fmt: skip
