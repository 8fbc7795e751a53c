"""Algorithm 1 of the paper step by step, its example, and blocks on which it does badly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from transposable import Exact, TwoApprox, find_mask

EPSILON: Final = 2.0**-10


@dataclass(frozen=True)
class Step:
    """One entry that is taken into the pruned set, and what its lines still lacked before."""

    row: int
    col: int
    weight: float
    row_lacks: int
    col_lacks: int


def walk(block: torch.Tensor, pruned: int) -> list[Step]:
    """Algorithm 1, word by word, on one block [m, m] of weights >= 0.

    From light to heavy, in row-major order where equal, an entry is taken when its row or its
    column has lost fewer than ``pruned`` entries so far.

    Example:
        >>> [(step.row, step.col) for step in walk(torch.tensor([[1.0, 3.0], [4.0, 2.0]]), 1)]
        [(0, 0), (1, 1)]
    """
    size = len(block)
    rows, cols = [0] * size, [0] * size
    edges = sorted((block[i, j].item(), i, j) for i in range(size) for j in range(size))
    taken = []
    for weight, i, j in edges:
        lacks = max(pruned - rows[i], 0), max(pruned - cols[j], 0)
        if any(lacks):
            taken.append(Step(i, j, weight, *lacks))
            rows[i] += 1
            cols[j] += 1
    return taken


def example() -> torch.Tensor:
    """A block as in figure A.1: one entry of each of 4 rows and columns has to go, 7 are taken.

    All of the first row, the first column and the diagonal weigh about 1, in ascending order
    corner, rest of row and column, rest of the diagonal; everything else is heavy. The one optimum
    is the diagonal. (The paper gives the picture and the ratio 7/4 but no figures; these are ours.)
    """
    block = torch.full((4, 4), 10.0, dtype=torch.float64)
    block.diagonal().fill_(1.0)
    block[0, 1:] = block[1:, 0] = 1 - EPSILON
    block[0, 0] = 1 - 3 * EPSILON
    return block


def tight(m: int, pruned: int, epsilon: float = EPSILON) -> torch.Tensor:
    """A block of m x m on which the ratio tends to 2 as epsilon does to 0, where 2 pruned <= m.

    A corner of pruned x pruned entries weighs next to nothing and serves its own rows and columns.
    The entries beside and below it are a little lighter than a block diagonal that would serve
    the other lines, so the walk takes both of them where one is enough.
    """
    block = torch.full((m, m), 10.0, dtype=torch.float64)
    lines = torch.arange(m - pruned)
    for shift in range(pruned):
        block[pruned + lines, pruned + (lines + shift) % (m - pruned)] = 1.0
    block[:pruned, pruned:] = block[pruned:, :pruned] = 1 - epsilon
    block[:pruned, :pruned] = epsilon
    return block


def pruned_sums(tiles: torch.Tensor, n: int, approximate: bool) -> torch.Tensor:
    """Pruned weight of each tile [count, m, m], by Algorithm 1 or by the exact solver, float64."""
    m = tiles.shape[-1]
    solver = TwoApprox() if approximate else Exact()
    kept = find_mask(tiles.reshape(-1, m), f"{n}:{m}T", solver=solver).tensor
    return (tiles.double() * ~kept.reshape(tiles.shape)).sum((1, 2))


def ratios(tiles: torch.Tensor, n: int) -> torch.Tensor:
    """W(P) / W* of each tile; 1 where both are zero."""
    taken, least = (pruned_sums(tiles, n, approximate) for approximate in (True, False))
    return torch.where(taken > 0, taken / least, 1.0)
