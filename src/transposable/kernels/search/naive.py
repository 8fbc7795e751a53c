"""Repair and local search in plain torch: one step after the other, tiles side by side."""

from __future__ import annotations

import torch

from transposable.layout import blocks, unblocks


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
    """As :func:`transposable.kernels.search.improve`, on any device."""
    batch, rows, cols = matrices.shape
    scores = blocks(matrices.double(), m).reshape(-1, m, m)
    scores = scores.abs() if magnitude else scores
    mask = blocks(kept, m).reshape(-1, m, m).clone()
    real = blocks(torch.ones_like(kept), m).reshape(-1, m, m)
    full = real.all(2).all(1)
    usable = ~scores.isnan().any(2).any(1)
    value = scaled(scores)
    if repair:
        _complete(value, mask, n, full & usable)
    if sweeps:
        _exchange(value, mask, sweeps)
        _polish(value, mask, n, sweeps, ~full & usable)
    kept.copy_(unblocks(mask.reshape(batch, -(-rows // m), -(-cols // m), m, m), rows, cols))


def scaled(scores: torch.Tensor) -> torch.Tensor:
    """float32 scores [tiles, m, m] with a largest finite magnitude in [0.5, 1), infinities +-2^14.

    Example:
        >>> scaled(torch.tensor([[[3.0, -0.5], [float("inf"), 0.0]]], dtype=torch.float64))
        tensor([[[ 7.5000e-01, -1.2500e-01],
                 [ 1.6384e+04,  0.0000e+00]]])
    """
    finite = torch.where(scores.isfinite(), scores, 0.0)
    exponent = torch.frexp(finite.abs().amax((1, 2), keepdim=True)).exponent
    half = exponent // 2  # one factor alone could overflow
    value = torch.ldexp(torch.ldexp(finite, -half), half - exponent).float()
    return torch.where(scores.isinf(), scores.sign().float() * 2.0**14, value)


def _complete(value: torch.Tensor, mask: torch.Tensor, n: int, repaired: torch.Tensor) -> None:
    """The best exchange for the first row that lacks an entry, until none does."""
    m = mask.shape[1]
    while (lacks := (mask.sum(2) < n) & repaired[:, None]).any():
        tile = lacks.any(1).nonzero()[:, 0]
        i = lacks[tile].int().argmax(1)
        a, kept = value[tile], mask[tile]
        one = torch.arange(len(tile), device=tile.device)
        # [tiles, l, k, j]; the order of the sums is that of the native code.
        gain = (a.mT[:, :, :, None] + a[one, i][:, None, None, :]) - a[:, None]
        can = kept[:, None] & ~kept[one, i][:, None, None, :] & ~kept.mT[:, :, :, None]
        can &= (kept.sum(1) < n)[:, :, None, None]
        best = torch.where(can, gain, -torch.inf).flatten(1)
        at = (best == best.amax(1, keepdim=True)).int().argmax(1)
        column, k, j = at // (m * m), at // m % m, at % m
        mask[tile, k, j] = False
        mask[tile, k, column] = mask[tile, i, j] = True


def _exchange(value: torch.Tensor, mask: torch.Tensor, sweeps: int) -> None:
    """Sweeps over the pairs of rows: the best exchange of each, if it gains."""
    m = mask.shape[1]
    for _ in range(sweeps):
        before = mask.clone()
        for i in range(m):
            for k in range(i + 1, m):
                difference = value[:, i] - value[:, k]
                gives, takes = mask[:, i] & ~mask[:, k], mask[:, k] & ~mask[:, i]
                low = torch.where(gives, difference, torch.inf).amin(1)
                high = torch.where(takes, difference, -torch.inf).amax(1)
                give = (gives & (difference == low[:, None])).int().argmax(1)
                take = (takes & (difference == high[:, None])).int().argmax(1)
                tile = (high > low).nonzero()[:, 0]
                for column, to_i in ((give[tile], False), (take[tile], True)):
                    mask[tile, i, column], mask[tile, k, column] = to_i, not to_i
        if torch.equal(mask, before):
            return


def _polish(
    value: torch.Tensor, mask: torch.Tensor, n: int, sweeps: int, cropped: torch.Tensor
) -> None:
    """Single entries of cropped tiles: drop the negative, add what fits, move within a line."""
    m = mask.shape[1]
    mask &= ~((value < 0) & cropped[:, None, None])
    for _ in range(sweeps):
        before = mask.clone()
        for i in range(m):
            then = mask[:, i].clone()
            for col in range(m):
                gain = value[:, i, col]
                row_room, col_room = mask[:, i].sum(1) < n, mask[:, :, col].sum(1) < n
                by_row = torch.where(mask[:, i], value[:, i], torch.inf)
                by_col = torch.where(mask[:, :, col], value[:, :, col], torch.inf)
                wanted = cropped & ~then[:, col] & (gain > 0)
                in_row = wanted & ~row_room & col_room & (by_row.amin(1) < gain)
                in_col = wanted & ~col_room & row_room & (by_col.amin(1) < gain)
                leaves = in_row.nonzero()[:, 0]
                mask[leaves, i, _first_least(by_row)[leaves]] = False
                leaves = in_col.nonzero()[:, 0]
                mask[leaves, _first_least(by_col)[leaves], col] = False
                mask[:, i, col] |= (wanted & row_room & col_room) | in_row | in_col
        if torch.equal(mask, before):
            return


def _first_least(x: torch.Tensor) -> torch.Tensor:
    """The first index of the least of every line."""
    return (x == x.amin(1, keepdim=True)).int().argmax(1)
