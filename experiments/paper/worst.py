"""The worst block for Algorithm 1, searched for: random blocks, then hill climbing on many."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import torch

from experiments.paper.walk import ratios, tight

BLOCKS: Final = ((1, 2), (3, 4), (2, 4), (1, 4), (7, 8), (4, 8))
"""(n, m): small blocks of all kinds that a climb can still get anywhere in."""


@dataclass(frozen=True)
class Effort:
    """How many blocks climb, for how many rounds, and how often the better half is doubled."""

    blocks: int = 2048
    rounds: int = 3000
    cull: int = 200


def search(n: int, m: int, effort: Effort, seed: int = 0) -> dict[str, Any]:
    """The largest W(P) / W* found; nothing about the answer is put in."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    best = drawn(effort.blocks, m, generator)
    worst = ratios(best, n)
    at_random = float(worst.max())
    for number in range(1, effort.rounds + 1):
        tried = changed(best, generator)
        found = ratios(tried, n)
        better = found > worst
        best[better], worst[better] = tried[better], found[better]
        if number % effort.cull == 0:
            order = worst.argsort(descending=True)[: effort.blocks // 2]
            best = torch.cat([best[order], best[order]])[: effort.blocks]
            worst = torch.cat([worst[order], worst[order]])[: effort.blocks]
    top = int(worst.argmax())
    pruned = m - n
    return {
        "pattern": f"{n}:{m}T",
        "blocks": effort.blocks,
        "rounds": effort.rounds,
        "evaluated": effort.blocks * (effort.rounds + 1),
        "at_random": at_random,
        "found": float(worst[top]),
        "block": best[top].tolist(),
        "constructed": float(ratios(tight(m, pruned)[None], n)) if 2 * pruned <= m else None,
        "seconds": round(time.perf_counter() - started, 1),
    }


def drawn(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform, log-normal, and two-level blocks: entries near 1 among heavy ones."""
    shape = (count, m, m)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    heavy = torch.rand(shape, generator=generator) < torch.rand(count, 1, 1, generator=generator)
    levels = torch.where(heavy, 10.0, 1.0) + 1e-3 * uniform
    kind = torch.arange(count)[:, None, None] % 3
    return torch.where(kind == 0, uniform, torch.where(kind == 1, normal.exp(), levels)) + 1e-6


def changed(blocks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One to three entries of each block: scaled, or set close to another entry of the block."""
    count, m, _ = blocks.shape
    flat = blocks.reshape(count, m * m).clone()
    rows = torch.arange(count)
    for move in range(3):
        # The first move is made everywhere, the others on ever fewer blocks.
        active = torch.rand(count, generator=generator) < 0.5**move
        place, other = torch.randint(m * m, (2, count), generator=generator)
        nudge = 1e-3 * torch.randn(count, generator=generator, dtype=torch.float64)
        scaled = flat[rows, place] * torch.randn(count, generator=generator).double().exp()
        close = flat[rows, other] * (1 + nudge)
        pick = torch.rand(count, generator=generator) < 0.5
        value = torch.where(pick, scaled, close).clamp(1e-4, 1e2)
        flat[rows[active], place[active]] = value[active]
    return flat.reshape(blocks.shape)
