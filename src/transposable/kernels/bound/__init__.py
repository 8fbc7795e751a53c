"""The dual bound of masks and prices, for tensors on a GPU."""

from __future__ import annotations

from typing import Final

import torch

from transposable.kernels.support import Tiles, bytes_of, current, strides_of

SCHEDULES: Final = {4: (64, 4), 8: (16, 4), 16: (4, 4), 32: (1, 4)}
"""Tiles of a program, and its warps, by tile side: 8 scores a thread."""


def dual_bound(
    matrices: torch.Tensor,
    kept: torch.Tensor,
    n: int,
    m: int,
    magnitude: bool,
    u: torch.Tensor,
    v: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value that prices give as a bound on every mask, and the worst relative gap of a tile.

        sum S_ij a_ij  <=  N sum_i u_i + N sum_j v_j + sum_ij max(0, a_ij - u_i - v_j)

    Args:
        matrices: scores [batch, rows, cols], float32, bfloat16 or float16, any strides, no NaN.
        kept: bool [batch, rows, cols], any strides.
        n, m, magnitude: as for :func:`transposable.kernels.exact.fill`.
        u, v: float64 [batch, down, across, m], contiguous.

    Returns:
        Two float64 scalars on the device; the gap of a tile is relative to the kept magnitude, but
        at least to 2^-21 of its largest finite score, and to all of it beside infinities.

    Complexity: one pass over the five.
    """
    from transposable.kernels.bound import device

    tiles = Tiles.of(matrices, m)
    value = torch.zeros(tiles.count, dtype=torch.float64, device=matrices.device)
    gaps = torch.zeros(tiles.count + 1, dtype=torch.float64, device=matrices.device)
    if tiles.count:
        per_program, warps = SCHEDULES[m]
        with current(matrices.device):
            device.bound[(-(-tiles.count // per_program),)](
                matrices, bytes_of(kept), u, v, value, gaps, *tiles.sizes,
                *strides_of(matrices), *strides_of(kept), n,
                M=m, T=per_program, MAGNITUDE=magnitude, num_warps=warps,
            )  # fmt: skip
    return value.sum(), gaps.nan_to_num(nan=torch.inf, posinf=torch.inf).amax()
