"""Greedy keep in torch: largest entry first, all tiles in step."""

from __future__ import annotations

from types import MappingProxyType

import torch

from benchmarks.peers.base import Peer

CHUNK_TILES = 8192
"""Tiles in step: fewer pay torch's overhead per call, more leave the cache."""


class TorchGreedy(Peer):
    """Keep an entry, in descending order, while its row and its column keep fewer than N.

    What PyTorch's tile kernel does for 4 x 4; no repair, so that a line may keep fewer than N.
    """

    name = "torch_greedy"
    label = "torch greedy, batched"
    sample = MappingProxyType({4: 524288, 8: 131072, 16: 32768, 32: 8192})

    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        chunks = torch.split(scores, CHUNK_TILES)
        return torch.cat([greedy(chunk, n) for chunk in chunks])


def greedy(tiles: torch.Tensor, n: int) -> torch.Tensor:
    """Greedy masks of tiles [count, m, m]: at most n kept in every row and column."""
    count, m, _ = tiles.shape
    order = tiles.reshape(count, m * m).argsort(1, descending=True).t().contiguous()
    base = torch.arange(count, device=tiles.device) * m
    # One counter per line of every tile, flat, so that a step is a gather and a scatter.
    row_at = order.div(m, rounding_mode="floor").add_(base)
    col_at = order.remainder(m).add_(base)
    rows = torch.zeros(count * m, dtype=torch.int32, device=tiles.device)
    cols = torch.zeros_like(rows)
    chosen = torch.empty(order.shape, dtype=torch.bool, device=tiles.device)
    for step in range(m * m):
        row, col = row_at[step], col_at[step]
        row_count, col_count = rows[row], cols[col]
        take = (row_count < n) & (col_count < n)
        rows[row] = row_count + take
        cols[col] = col_count + take
        chosen[step] = take
    kept = torch.empty(count, m * m, dtype=torch.bool, device=tiles.device)
    return kept.scatter_(1, order.t(), chosen.t()).reshape(count, m, m)
