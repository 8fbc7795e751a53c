"""Plain N:M masks in plain torch."""

from __future__ import annotations

import torch


def fill(
    matrices: torch.Tensor, kept: torch.Tensor, n: int, m: int, magnitude: bool
) -> torch.Tensor:
    """As :func:`transposable.kernels.row_wise.fill`, on any device."""
    batch, rows, cols = matrices.shape
    groups = -(-cols // m)
    scores = matrices.double().abs() if magnitude else matrices.double()
    padded = scores.new_full((batch, rows, groups * m), -torch.inf)
    padded[:, :, :cols] = scores
    grouped = padded.reshape(batch, rows, groups, m)
    nan = grouped.isnan().any(3)
    # A stable sort: ties go to the lower place.
    order = grouped.sort(dim=3, descending=True, stable=True).indices
    chosen = torch.zeros_like(grouped, dtype=torch.bool).scatter_(3, order[..., :n], True)
    chosen &= ~nan[..., None]
    mask = chosen.reshape(batch, rows, groups * m)[:, :, :cols]
    edge = cols // m * m
    mask[:, :, edge:] &= ~(scores[:, :, edge:] < 0)
    kept.copy_(mask)
    return nan.sum().to(torch.int32)
