"""The dual bound of given masks in plain torch."""

from __future__ import annotations

import torch

from transposable.layout import blocks


def dual_bound(
    matrices: torch.Tensor,
    kept: torch.Tensor,
    n: int,
    m: int,
    magnitude: bool,
    u: torch.Tensor,
    v: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`transposable.kernels.bound.dual_bound`, on any device."""
    score = blocks(matrices.double(), m).reshape(-1, m, m)
    score = score.abs() if magnitude else score
    mask = blocks(kept, m).reshape(-1, m, m)
    real = blocks(torch.ones_like(kept), m).reshape(-1, m, m)
    full = real.all(2).all(1)[:, None]
    u, v = (torch.where(full, x, x.clamp(min=0)) for x in (u.reshape(-1, m), v.reshape(-1, m)))

    endless = score.isinf()
    largest = torch.where(endless, 0.0, score.abs()).amax((1, 2))
    largest = torch.where(largest == 0, 1.0, largest)
    score = torch.where(endless, score.sign() * largest[:, None, None] * 2.0**14, score)
    reduced = torch.where(real, score - u[:, :, None] - v[:, None, :], 0.0)
    # dual - primal, without the cancellation of that difference: what complementary slackness is
    # short of, and prices of lines that keep fewer than n.
    gap = torch.where(mask, -reduced, reduced).clamp(min=0).sum((1, 2))
    gap = gap + (u * (n - mask.sum(2))).sum(1) + (v * (n - mask.sum(1))).sum(1)
    primal = torch.where(mask, score, 0.0).sum((1, 2))
    scale = torch.where(mask & ~endless, score.abs(), 0.0).sum((1, 2))
    floor = torch.where(endless.any(2).any(1), largest, largest * 2.0**-21)
    return (primal + gap).sum(), _worst(gap / scale.maximum(floor))


def _worst(gaps: torch.Tensor) -> torch.Tensor:
    """The largest; of none 0, and infinity if one is NaN."""
    return torch.cat([gaps.new_zeros(1), gaps]).nan_to_num(nan=torch.inf).amax()
