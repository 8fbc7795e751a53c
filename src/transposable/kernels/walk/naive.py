"""The walks in plain torch, one entry after the other, all tiles side by side."""

from __future__ import annotations

import torch

from transposable.kernels.walk import How
from transposable.layout import blocks, unblocks


def fill(
    matrices: torch.Tensor, kept: torch.Tensor, n: int, m: int, magnitude: bool, how: How
) -> torch.Tensor:
    """As :func:`transposable.kernels.walk.fill`, on any device."""
    batch, rows, cols = matrices.shape
    scores = blocks(matrices.double(), m).reshape(-1, m * m)
    scores = scores.abs() if magnitude else scores
    real = blocks(torch.ones_like(kept), m).reshape(-1, m * m)
    nan = scores.isnan().any(1)
    unwanted = real & (scores < 0) & ~real.all(1, keepdim=True)
    prune = how == "prune"
    order = scores.sort(dim=1, descending=how == "keep", stable=True).indices
    order = order.flip(1) if how == "refill" else order
    tile = torch.arange(len(scores), device=scores.device)
    taken = torch.zeros_like(real)
    by_row, by_col = (torch.full((len(scores), m), n, device=scores.device) for _ in range(2))
    if prune:
        grid = real.reshape(-1, m, m)
        by_row = (grid.any(1).sum(1, keepdim=True) - n).clamp(min=0).expand(-1, m).clone()
        by_col = (grid.any(2).sum(1, keepdim=True) - n).clamp(min=0).expand(-1, m).clone()
    if how == "refill":
        taken = blocks(kept, m).reshape(-1, m * m).clone()
        by_row, by_col = (n - taken.reshape(-1, m, m).sum(axis) for axis in (2, 1))
    for step in range(m * m):
        entry = order[:, step]
        row, col = entry // m, entry % m
        left, below = by_row[tile, row] > 0, by_col[tile, col] > 0
        bad = unwanted[tile, entry]
        take = (left | below | bad) if prune else (left & below & ~bad)
        take = take & real[tile, entry] & ~nan & ~taken[tile, entry]
        taken[tile, entry] |= take
        by_row[tile, row] -= take.long()
        by_col[tile, col] -= take.long()
    mask = (real & ~taken if prune else taken) & ~nan[:, None]
    shape = (batch, -(-rows // m), -(-cols // m), m, m)
    kept.copy_(unblocks(mask.reshape(shape), rows, cols))
    return nan.sum().to(torch.int32)
