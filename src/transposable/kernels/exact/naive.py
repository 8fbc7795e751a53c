"""Exact masks in plain torch: what the kernels compute, tile by tile side by side.

One pass of successive shortest paths in 50-bit integers, from prices of zero. The kernels' wide
path does the same, tie for tie; their narrow path starts from other prices, and may break ties
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from transposable.layout import blocks, unblocks

FAR: Final = 2**62
BITS: Final = 50
INFINITE_BITS: Final = 14


def fill(
    matrices: torch.Tensor,
    kept: torch.Tensor,
    n: int,
    m: int,
    magnitude: bool,
    u: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`transposable.kernels.exact.fill`, on any device; the counters apart."""
    rows, cols = matrices.shape[1:]
    tiles = _tiles(matrices, m, magnitude)
    held = choose(tiles, n)
    prices = torch.zeros_like(tiles.q[:, 0])
    mask = push(tiles, held, prices, n)
    shape = (matrices.shape[0], -(-rows // m), -(-cols // m))
    stored = mask & ~tiles.nan[:, None, None]
    kept.copy_(unblocks(stored.reshape(*shape, m, m), rows, cols))
    if u is not None and v is not None:
        x = tiles.q - prices[:, None, :]
        lowest = torch.where(tiles.full, -FAR, 0)[:, None]
        by_row = torch.where(tiles.real & ~mask, x, -FAR).amax(2).maximum(lowest)
        real_rows, real_cols = tiles.real.any(2), tiles.real.any(1)
        u.copy_((torch.where(real_rows, by_row, 0) * tiles.unit[:, None]).reshape(u.shape))
        v.copy_((torch.where(real_cols, prices, 0) * tiles.unit[:, None]).reshape(v.shape))
    return torch.stack([torch.zeros_like(tiles.nan.sum()), tiles.nan.sum(), tiles.nan.sum()])


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Scores in fixed point [tiles, m, m], where they are real, and what a unit is worth."""

    q: torch.Tensor
    real: torch.Tensor
    full: torch.Tensor
    nan: torch.Tensor
    unit: torch.Tensor


def _tiles(matrices: torch.Tensor, m: int, magnitude: bool) -> _Tiles:
    """score = q * unit, |q| < 2^50; 2^36 beside infinities, which count 2^14 times the largest."""
    x = blocks(matrices.double(), m).reshape(-1, m, m)
    real = blocks(torch.ones_like(matrices, dtype=torch.bool), m).reshape(-1, m, m)
    x = x.abs() if magnitude else x
    nan = x.isnan().any(2).any(1)
    endless = x.isinf()
    largest = torch.where(endless | x.isnan(), 0.0, x.abs()).amax((1, 2))
    largest = torch.where(largest == 0, 1.0, largest)
    # float32 has no exponent below that of 2^-126; frexp gives exponents one higher.
    top = torch.frexp(largest).exponent.clamp(min=-125)
    bits = torch.where(endless.any(2).any(1), BITS - INFINITE_BITS, BITS)
    unit = torch.ldexp(torch.ones_like(largest), top - bits)
    scaled = torch.where(endless, x.sign() * 2**INFINITE_BITS * largest[:, None, None], x)
    scaled = scaled.nan_to_num(0.0) / unit[:, None, None]
    # Halves away from zero.
    q = (scaled.abs() + 0.5).floor().copysign(scaled).long()
    return _Tiles(torch.where(nan[:, None, None], 0, q), real, real.all(2).all(1), nan, unit)


def choose(tiles: _Tiles, n: int) -> torch.Tensor:
    """Every row takes its n best, ties in favour of the columns that hold the least."""
    q, real, full = tiles.q, tiles.real, tiles.full[:, None]
    m = q.shape[1]
    threshold = torch.where(real, q, -FAR).sort(2, descending=True).values[:, :, n - 1]
    threshold = torch.where(full, threshold, threshold.clamp(min=0))
    mask = real & (q > threshold[:, :, None])
    tied = real & (q == threshold[:, :, None])
    held = mask.sum(1)
    order = torch.arange(m, device=q.device)
    for i in range(m):
        can = tied[:, i] & (full | (threshold[:, i : i + 1] > 0) | (held < n))
        key = torch.where(can, held * m + (order - i) % m, m * (m + 1))
        rank = (key[:, :, None] < key[:, None, :]).sum(1)
        take = can & (rank < n - mask[:, i].sum(1, keepdim=True))
        mask[:, i] |= take
        held = held + take
    return mask


def push(tiles: _Tiles, mask: torch.Tensor, prices: torch.Tensor, n: int) -> torch.Tensor:
    """Shortest paths from over-full columns until none is; changes the prices, returns the mask."""
    m = tiles.q.shape[1]
    index = torch.arange(len(mask), device=mask.device)
    never = 2 * m
    while (over := mask.sum(1) > n).any():
        x = tiles.q - prices[:, None, :]
        distance = torch.where(over, 0, FAR)
        found = torch.where(over, 0, never)
        for turn in range(1, m + 1):
            by_row = _nearest(x, mask, distance)
            move = by_row[:, :, None] - x
            move[mask | ~tiles.real | (by_row == FAR)[:, :, None]] = FAR
            nearer = move.amin(1)
            found = torch.where(nearer < distance, turn, found)
            distance = distance.minimum(nearer)
        active = over.any(1)
        goal = torch.where(mask.sum(1) < n, distance, FAR)
        reached, target = goal.min(1)
        dropped = _nearest(x, mask, distance).amin(1)
        drops = active & ~tiles.full & (dropped < reached)
        reached = torch.where(drops, dropped, reached)
        after = mask.clone()
        at, first = target, drops
        while active.any():
            ends = torch.where(
                first[:, None], reached[:, None], x[index, :, at] + _at(distance, at)
            )
            before = torch.where(first, never, found[index, at])[:, None, None]
            lacks = first[:, None] | ~mask[index, :, at]
            tight = mask & lacks[:, :, None] & (distance[:, None, :] + x == ends[:, :, None])
            tight &= (found[:, None, :] < before) & (distance < FAR)[:, None, :]
            active = active & tight.any(2).any(1)
            code = tight.flatten(1).int().argmax(1)
            row, source = code // m, code % m
            now = index[active]
            after[now, row[now], source[now]] = False
            into = now[~first[now]]
            after[into, row[into], at[into]] = True
            at, first = torch.where(active, source, at), torch.zeros_like(first)
        mask = after
        rise = torch.where(over.any(1), reached, 0)[:, None]
        prices += (rise - distance).clamp(min=0)
    return mask


def _at(distance: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The distance of one column of each tile, [tiles, 1]."""
    return distance.gather(1, column[:, None])


def _nearest(x: torch.Tensor, mask: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """R_i = min over the kept a of row i of d_a + x_ia."""
    known = mask & (distance < FAR)[:, None, :]
    return torch.where(known, distance[:, None, :] + x, FAR).amin(2)
