"""Exact transposable masks of whole tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from transposable.kernels.support import Tiles, bits_of, bytes_of, current, processors, strides_of

NANS: Final = 2
"""Which counter has the tiles with a NaN; before it: tiles left by the wave, and 50-bit tiles."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a tile side is launched; any schedule is correct.

    Attributes:
        rounds: rounds of the wave, each of rows and columns.
        steps: bisections of a half round.
        wave, narrow, wide: tiles of a program and its warps; no more than registers can hold.
        enumerated: the same where all masks are compared instead, which 4 x 4 tiles allow.
    """

    rounds: int
    steps: int
    wave: tuple[int, int]
    narrow: tuple[int, int]
    wide: tuple[int, int]
    enumerated: tuple[int, int] | None = None


SCHEDULES: Final = {
    4: Schedule(4, 6, (128, 4), (8, 1), (8, 1), enumerated=(128, 4)),
    8: Schedule(5, 8, (64, 4), (4, 1), (4, 1)),
    16: Schedule(7, 9, (16, 4), (2, 1), (1, 1)),
    32: Schedule(9, 10, (4, 4), (1, 8), (1, 4)),
}

PROGRAMS: Final = 16
"""Programs of a multiprocessor that share the tiles of a list."""


def fill(
    matrices: torch.Tensor,
    kept: torch.Tensor,
    n: int,
    m: int,
    magnitude: bool,
    u: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
) -> torch.Tensor:
    """Optimal masks into ``kept``, and prices into u and v; nothing waits for the device.

        max sum S_ij a_ij   s.t.  sum_j S_ij = N,  sum_i S_ij = N,  S_ij in {0, 1}

    In a tile cropped by a ragged edge at most N.

    Args:
        matrices: scores [batch, rows, cols], float32, bfloat16 or float16, any strides.
        kept: bool [batch, rows, cols], any strides, on the same device; every entry is written.
        n, m: the pattern, m one of 4, 8, 16 and 32.
        magnitude: whether |matrices| is maximised.
        u, v: float64 [batch, down, across, m], contiguous and zero, or None.

    Returns:
        int32 [3] on the device: tiles that the wave left (none if enumerated), tiles solved in 50
        bits, tiles with a NaN (which keep nothing).

    Complexity: O(weights) memory traffic, and 4 bytes a tile and column of workspace.
    """
    from transposable.kernels.exact import device, four

    tiles = Tiles.of(matrices, m)
    counters = torch.zeros(3, dtype=torch.int32, device=matrices.device)
    if not tiles.count:
        return counters
    raw, kind = bits_of(matrices)
    schedule = SCHEDULES[m]
    wide = torch.empty(tiles.count, dtype=torch.int32, device=raw.device)
    todo = warm = wide
    if schedule.enumerated is None:  # else nothing is left for the narrow paths
        todo, warm = torch.empty_like(wide), wide.new_empty(tiles.count, m)
    prices = u is not None and v is not None
    # A pointer is needed even where none is written.
    u_at, v_at = (u, v) if prices else (warm, warm)
    shared = (*tiles.sizes, *strides_of(raw), *strides_of(kept))
    common = {"KIND": kind, "MAGNITUDE": magnitude, "PRICES": prices}
    kept = bytes_of(kept)

    def programs(per_program: int, most: int) -> tuple[int]:
        return (min(-(-tiles.count // per_program), most),)

    most = processors(raw.device) * PROGRAMS
    left = [(True, wide, schedule.wide)]
    with current(raw.device):
        if schedule.enumerated is not None:
            per_program, warps = schedule.enumerated
            four.four[programs(per_program, tiles.count)](
                raw, kept, u_at, v_at, wide, counters, *shared,
                **common, N=n, T=per_program, num_warps=warps,
            )  # fmt: skip
        else:
            per_program, warps = schedule.wave
            device.wave[programs(per_program, tiles.count)](
                raw, kept, u_at, v_at, todo, wide, warm, counters, *shared, n, **common, M=m,
                T=per_program, ROUNDS=schedule.rounds, STEPS=schedule.steps, num_warps=warps,
            )  # fmt: skip
            left.insert(0, (False, todo, schedule.narrow))
        for is_wide, listed, (per_program, warps) in left:
            device.paths[programs(per_program, most)](
                raw, kept, u_at, v_at, listed, wide, warm, counters, *shared, n, **common, M=m,
                T=per_program, WIDE=is_wide, num_warps=warps,
            )  # fmt: skip
    return counters
