"""Plain N:M masks: the n largest of every group."""

from __future__ import annotations

from typing import Final

import torch

from transposable.kernels.support import bits_of, bytes_of, current, strides_of

SCHEDULES: Final = {4: (128, 4), 8: (32, 4), 16: (16, 4), 32: (4, 4)}
"""Groups of a program, and its warps, by group length."""


def fill(
    matrices: torch.Tensor, kept: torch.Tensor, n: int, m: int, magnitude: bool
) -> torch.Tensor:
    """The n largest scores of every m consecutive ones of a row, into ``kept``; nothing waits.

    Ties go to the lower index. A group cropped by the edge keeps at most n, and no negative score.

    Args:
        matrices, kept, n, m, magnitude: as for :func:`transposable.kernels.exact.fill`.

    Returns:
        int32 [] on the device: groups with a NaN, which keep nothing.

    Complexity: one pass over the two, and m comparisons a score.
    """
    from transposable.kernels.row_wise import device

    batch, rows, cols = matrices.shape
    groups = -(-cols // m)
    count = batch * rows * groups
    nans = torch.zeros((), dtype=torch.int32, device=matrices.device)
    if not count:
        return nans
    raw, kind = bits_of(matrices)
    per_program, warps = SCHEDULES[m]
    with current(raw.device):
        device.row_wise[(-(-count // per_program),)](
            raw, bytes_of(kept), nans, count, rows, cols, groups,
            *strides_of(raw), *strides_of(kept), n,
            M=m, T=per_program, KIND=kind, MAGNITUDE=magnitude, num_warps=warps,
        )  # fmt: skip
    return nans
