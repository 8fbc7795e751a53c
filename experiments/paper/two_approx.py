"""Item: Algorithm 1 (lemma 1, figure A.1): its example, its worst ratio, its loss on real weights.

Everything is relative to the exact solver; the blocks that are reported are checked once more with
a min-cost flow in exact arithmetic.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import torch

from experiments.paper import networks
from experiments.paper.common import Session
from experiments.paper.walk import example, pruned_sums, ratios, walk
from experiments.paper.worst import BLOCKS, Effort, search
from experiments.runs import machine
from transposable import Reference, TwoApprox, find_mask, solve

ITEM: Final = "two_approx"
PATTERNS: Final = ((2, 4), (4, 8), (8, 16))
GAUSSIAN: Final = "Gaussian 1024 x 1024"


def run(session: Session, effort: Effort | None = None) -> None:
    """The example, the search, the weights of all networks."""
    session.need(ITEM, networks.NEEDED)
    torch.set_num_threads(session.threads)
    searches = []
    for n, m in BLOCKS:
        found = search(n, m, effort or Effort())
        found["confirmed"] = exact_ratio(torch.tensor(found["block"], dtype=torch.float64), n)
        searches.append(found)
        print(f"{found['pattern']:<6} worst ratio found {found['found']:.4f}", flush=True)
    real = [on_weights(GAUSSIAN, [gaussian()], n, m) for n, m in PATTERNS]
    for name in networks.LAYERS:
        net = networks.load(session, name)
        matrices = [weight.matrices for weight in networks.weights(net, name)]
        real += [on_weights(name, matrices, n, m) for n, m in PATTERNS]
        print(f"{name}: {len(matrices)} layers", flush=True)
    session.save(
        ITEM,
        {"example": the_example(), "searches": searches, "weights": real, "machine": machine()},
    )


def the_example() -> dict[str, Any]:
    """The steps on the block of figure A.1, and both pruned weights."""
    block = example()
    steps = walk(block, pruned=1)
    optimum = solve(block, "3:4T", Reference()).mask.tensor
    return {
        "block": block.tolist(),
        "steps": [asdict(step) for step in steps],
        "taken": sum(step.weight for step in steps),
        "optimal": [[i, j] for i, j in (~optimum).nonzero().tolist()],
        "least": float(block[~optimum].sum()),
    }


def exact_ratio(block: torch.Tensor, n: int) -> float:
    """W(P) / W* of one block [m, m], with the walk above and the flow in exact arithmetic."""
    m = len(block)
    taken = sum(step.weight for step in walk(block, m - n))
    kept = solve(block, f"{n}:{m}T", Reference()).mask.tensor
    return float(taken / block[~kept].sum())


def gaussian() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 1024, 1024, generator=generator)


def on_weights(name: str, matrices: list[torch.Tensor], n: int, m: int) -> dict[str, Any]:
    """Mean and worst over all full tiles of a network's layers."""
    found = torch.cat([networks.tiles(one, m) for one in matrices]).abs()
    total = found.double().sum((1, 2))
    least, taken = (pruned_sums(found, n, approximate) for approximate in (False, True))
    best, held = total - least, total - taken
    kept = find_mask(networks.stacked(found), f"{n}:{m}T", solver=TwoApprox(repair=True)).tensor
    repaired = (found.double() * kept.reshape(found.shape)).sum((1, 2))
    published = find_mask(networks.stacked(found), f"{n}:{m}T", solver=TwoApprox())
    each = ratios(found, n)
    return {
        "network": name,
        "pattern": f"{n}:{m}T",
        "tiles": len(found),
        "ratio_mean": float(taken.sum() / least.sum()),
        "ratio_worst": float(each.max()),
        "violations": int((taken >= 2 * least).logical_and(taken > 0).sum()),
        "lost_mean": float(1 - held.sum() / best.sum()),
        "lost_worst": float((1 - held / best.clamp_min(1e-300)).max()),
        "density": published.density,
        "repaired_lost_mean": float(1 - repaired.sum() / best.sum()),
        "repaired_lost_worst": float((1 - repaired / best.clamp_min(1e-300)).max()),
    }
