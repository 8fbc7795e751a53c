"""Item: does mask diversity rank the patterns (table 1, figure 3a)?

Numbers of masks by the paper's form and exactly, accuracies from `accuracy`, rank correlations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any, Final

import numpy as np
import torch

from experiments.paper import networks
from experiments.paper.accuracy import DENSE, NETWORKS, STAGES, Budget, Job, hits, jobs, measure
from experiments.paper.common import PATTERNS, Session
from experiments.runs import RunStore, machine
from transposable.analysis import diversity

ITEM: Final = "diversity"
METHODS: Final = ("exact", "paper")
BLOCK: Final = (8, 8)
DRAWS: Final = 2000
UNIT: Final = "top-1, %"
COMPARED: Final = (("4:8T", "2:4"), ("2:4T", "2:4"), ("4:8T", "4:8"))


def run(session: Session) -> None:
    """Measure what is missing, then publish what is there."""
    budget, every = Budget(), jobs()
    measure(session, every, budget)
    session.need(ITEM, [f"models/{name}.safetensors" for name in NETWORKS])
    store = RunStore(session.work / "accuracy")
    runs = {job: result for job in every if (result := store.result(job.run(budget))) is not None}
    if len(runs) < len(every):
        print(f"{ITEM}: {len(runs)} of {len(every)} runs; the same command goes on", flush=True)
    stages = [
        summary
        for network in NETWORKS
        for stage in STAGES
        if (summary := summarised(network, stage, runs)) is not None
    ]
    session.save(
        ITEM,
        {
            "runs": len(runs),
            "planned": len(every),
            "budget": vars(budget),
            "block": counted_block(),
            "networks": {name: counted_network(session, name) for name in NETWORKS},
            "stages": stages,
            "machine": machine(),
        },
    )


def counted_block() -> list[dict[str, Any]]:
    """Masks of one 8 x 8 block, the unit of the paper's table 1."""
    found = []
    for pattern in PATTERNS:
        exact, paper = (diversity(pattern, BLOCK, method) for method in METHODS)
        found.append(
            {
                "pattern": pattern,
                "exact": str(exact.count),
                "exact_log10": exact.log10,
                "paper_log10": paper.log10,
                "bits_per_weight": exact.bits_per_weight,
            }
        )
    return found


def counted_network(session: Session, name: str) -> dict[str, dict[str, float]]:
    """log10 of the number of masks of all sparse layers together, by method and pattern."""
    net = networks.load(session, name)
    shapes = [(tuple(weight.tensor.shape), weight.layout) for weight in networks.weights(net, name)]
    return {
        method: {
            pattern: math.fsum(
                diversity(pattern, shape, method, layout=layout).log10 for shape, layout in shapes
            )
            for pattern in PATTERNS
        }
        for method in METHODS
    }


def summarised(network: str, stage: str, runs: dict[Job, dict[str, Any]]) -> dict[str, Any] | None:
    """One network at one stage: accuracy by pattern, differences, rank correlations.

    None unless all patterns are there; seeds that not all of them have are left out.
    """

    def found(pattern: str, at: str) -> dict[int, dict[str, Any]]:
        sought = (network, at, pattern)
        return {
            job.seed: result
            for job, result in runs.items()
            if (job.network, job.stage, job.pattern) == sought
        }

    by_pattern = {pattern: found(pattern, stage) for pattern in PATTERNS}
    # Only fine-tuning changes the dense network.
    by_pattern[DENSE] = found(DENSE, STAGES[2] if stage == STAGES[2] else STAGES[0])
    seeds = set.intersection(*(set(by_pattern[pattern]) for pattern in PATTERNS))
    if not seeds:
        return None
    order = sorted(seeds)
    outcomes = {
        pattern: torch.stack([hits(results[seed]) for seed in order])
        for pattern, results in by_pattern.items()
        if seeds <= set(results)
    }
    scores = {pattern: outcomes[pattern] for pattern in PATTERNS}
    return {
        "network": network,
        "stage": stage,
        "seeds": order,
        "images": next(iter(scores.values())).shape[1],
        "unit": UNIT,
        "score": {
            pattern: [round(100 * float(one.double().mean()), 4) for one in outcome]
            for pattern, outcome in outcomes.items()
        },
        "error": {p: accuracy_error(outcome) for p, outcome in outcomes.items()},
        "differences": [
            {"of": a, "to": b, **difference(outcomes[a], outcomes[b])}
            for a, b in (*COMPARED, *((p, DENSE) for p in PATTERNS if DENSE in outcomes))
        ],
        "ranks": {method: image_ranks(scores, block_log10(method)) for method in METHODS},
    }


def block_log10(method: str) -> dict[str, float]:
    """What the patterns are ordered by: log10 of the masks of an 8 x 8 block.

    For a network it is the same order: every factor is a power of it, but for cropped edges.
    """
    return {one["pattern"]: one[f"{method}_log10"] for one in counted_block()}


def accuracy_error(outcomes: torch.Tensor) -> float:
    """Standard error of a mean accuracy in points: choice of the images and seeds."""
    means = outcomes.double().mean(0)
    of_images = float(means.std()) / math.sqrt(outcomes.shape[1])
    return 100 * math.hypot(of_images, _of_seeds(outcomes.double().mean(1)))


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Mean difference of two accuracies in points with its standard error, image by image."""
    each = a.double() - b.double()
    of_images = float(each.mean(0).std()) / math.sqrt(each.shape[1])
    of_seeds = _of_seeds(each.mean(1))
    return {
        "points": 100 * float(each.mean()),
        "error": 100 * math.hypot(of_images, of_seeds),
        "of_images": 100 * of_images,
    }


def _of_seeds(values: torch.Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def image_ranks(scores: dict[str, torch.Tensor], order: dict[str, float]) -> dict[str, float]:
    """Rank correlations of outcomes bool [seeds, images] by pattern, drawn anew image by image."""
    right = torch.stack(list(scores.values())).double().mean(1).numpy()
    count = right.shape[1]
    generator = np.random.default_rng(0)
    drawn = [
        right @ np.bincount(generator.integers(count, size=count), minlength=count)
        for _ in range(DRAWS)
    ]
    return ranks([order[pattern] for pattern in scores], right.mean(1), np.stack(drawn))


def ranks(order: Sequence[float], scores: np.ndarray[Any, Any], drawn: Any) -> dict[str, float]:
    """Rank correlations of diversity and score, exact p-value, interval from scores drawn anew.

    The p-value is the share of all orders of the patterns whose Kendall tau is at least as large.

    Args:
        order: log10 of the number of masks, [patterns].
        scores: [patterns].
        drawn: bootstrap replicates of the scores, [draws, patterns].
    """
    from scipy.stats import kendalltau, spearmanr

    x = np.array(order)
    low, high = np.percentile(concordance(x, drawn), (2.5, 97.5))
    orders = np.array(list(permutations(scores)))
    return {
        "spearman": float(spearmanr(x, scores).statistic),
        "kendall": float(kendalltau(x, scores).statistic),
        "kendall_low": float(low),
        "kendall_high": float(high),
        "p": float((concordance(x, orders) >= concordance(x, scores) - 1e-12).mean()),
    }


def concordance(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """Kendall's tau of x [k] with every row of y [..., k]; equal values count as half in order.

    Example:
        >>> concordance(np.array([1, 2, 3]), np.array([[1, 2, 3], [3, 2, 1]])).tolist()
        [1.0, -1.0]
    """
    i, j = np.triu_indices(len(x), 1)
    return (np.sign(x[i] - x[j]) * np.sign(y[..., i] - y[..., j])).mean(-1)
