"""Item: the optimal transposable mask as a min-cost flow (figure 4), and what finding it costs.

The network of the paper is built as published and solved by OR-tools; the library's exact solver
has to prune exactly as much weight. Then both are timed on tiles of growing size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from benchmarks import harness
from benchmarks.peers.base import Peer, integer_scores
from benchmarks.peers.networkx_flow import NetworkxFlow
from benchmarks.peers.ortools_flow import OrtoolsFlow
from experiments.paper import networks
from experiments.paper.common import Session
from experiments.runs import machine
from transposable import Exact, find_mask

ITEM: Final = "flow"
SIZES: Final = (4, 8, 16, 32, 64)
SIDES: Final = (256, 512, 1024, 2048, 4096)
LARGE: Final = 1024
"""Side from which on the fixed cost of a call is small; powers are fitted to these."""
BITS: Final = 26
"""Scores become integers of so many bits, which both solvers take as they are: sums must be equal,
not close."""
CHECKED: Final = {4: 4000, 8: 2000, 16: 1000, 32: 200, 64: 60}
NETWORK: Final = {4: "resnet32", 8: "resnet32", 16: "resnet32", 32: "MiniLM", 64: "MiniLM"}
"""Whose weights are checked: tiles that large are rare in the small one."""
TIMED: Final = {
    "exact": {4: 262144, 8: 65536, 16: 16384, 32: 4096, 64: 64},
    "flow, OR-tools": {4: 8192, 8: 4096, 16: 1024, 32: 256, 64: 64},
    "flow, networkx": {4: 256, 8: 64, 16: 16, 32: 4, 64: 2},
}
FLOWS: Final[dict[str, Peer]] = {
    "flow, OR-tools": OrtoolsFlow(),
    "flow, networkx": NetworkxFlow(),
}
PUBLISHED_GROWTH: Final = "M^3 log M"


def run(session: Session, *, rounds: int = 5) -> None:
    session.need(ITEM, networks.NEEDED)
    torch.set_num_threads(1)
    checks = [check(session, m, rest) for m in SIZES for rest in sorted({1, m // 2, m - 1})]
    wrong = [one for one in checks if one["different"]]
    if wrong:
        raise RuntimeError(f"flow: the exact solver and the flow differ, nothing is timed: {wrong}")
    print(f"{sum(one['tiles'] for one in checks)} tiles agree with the flow", flush=True)
    by_tile = [timed(m, TIMED, rounds) for m in SIZES]
    by_side = [whole(side, rounds) for side in SIDES]
    session.save(
        ITEM,
        {
            "drawn": drawn(),
            "checks": checks,
            "by_tile": by_tile,
            "by_side": by_side,
            "growth": growth(by_tile, by_side),
            "machine": machine(),
        },
    )


def published_flow(costs: np.ndarray[Any, Any], pruned: int) -> np.ndarray[Any, Any]:
    """The pruned entries of one tile [m, m] by the network of the paper, costs integers >= 0.

        source -> row i (capacity Z) -> column j (capacity 1, cost |w_ij|) -> sink (capacity Z)

    A flow of M Z units of least cost uses the entries to be pruned, Z = M - N of every line.

    Raises:
        RuntimeError: if OR-tools does not report an optimum.
    """
    from ortools.graph.python import min_cost_flow

    m = len(costs)
    lines = np.arange(m)
    source, sink = 2 * m, 2 * m + 1
    network: Any = min_cost_flow.SimpleMinCostFlow()
    network.add_arcs_with_capacity_and_unit_cost(
        np.full(m, source), lines, np.full(m, pruned), np.zeros(m, np.int64)
    )
    entries = network.add_arcs_with_capacity_and_unit_cost(
        np.repeat(lines, m), m + np.tile(lines, m), np.ones(m * m, np.int64), costs.reshape(-1)
    )
    network.add_arcs_with_capacity_and_unit_cost(
        m + lines, np.full(m, sink), np.full(m, pruned), np.zeros(m, np.int64)
    )
    network.set_node_supply(source, m * pruned)
    network.set_node_supply(sink, -m * pruned)
    status = network.solve()
    if status != network.OPTIMAL:
        raise RuntimeError(f"published_flow: OR-tools ended with status {status}")
    found: np.ndarray[Any, Any] = network.flows(entries).reshape(m, m) == 1
    return found


def drawn() -> dict[str, Any]:
    """The tile of the drawing: small whole numbers, one optimum."""
    tile = np.array([[9, 2, 7, 4], [1, 8, 3, 6], [5, 7, 9, 2], [6, 3, 1, 8]], np.int64)
    return {"tile": tile.tolist(), "pruned": published_flow(tile, 2).astype(int).tolist()}


def check(session: Session, m: int, pruned: int) -> dict[str, Any]:
    """Half of the tiles from a trained network, half Gaussian: both prune the same integer sum."""
    count, name = CHECKED[m], NETWORK[m]
    net = networks.load(session, name)
    weights = [networks.tiles(w.matrices, m) for w in networks.weights(net, name)]
    generator = torch.Generator().manual_seed(m + pruned)
    real = torch.cat(weights)
    picked = real[torch.randperm(len(real), generator=generator)[: count // 2]]
    noise = torch.randn(count - len(picked), m, m, generator=generator)
    tiles = integer_scores(torch.cat([picked, noise]).abs(), BITS)
    kept = find_mask(networks.stacked(tiles.double()), f"{m - pruned}:{m}T", solver=Exact()).tensor
    ours = (tiles * ~kept.reshape(tiles.shape)).sum((1, 2)).numpy()
    numbers = tiles.numpy()
    flows = np.array([numbers[i][published_flow(numbers[i], pruned)].sum() for i in range(count)])
    return {
        "pattern": f"{m - pruned}:{m}T",
        "tiles": count,
        "from_weights": len(picked),
        "different": int((ours != flows).sum()),
    }


def timed(m: int, counts: dict[str, dict[int, int]], rounds: int) -> dict[str, Any]:
    """Seconds for one tile of M x M, N = M/2, by every solver, interleaved, one thread."""
    generator = torch.Generator().manual_seed(m)
    contenders = []
    for name, by_size in counts.items():
        tiles = torch.randn(by_size[m], m, m, generator=generator).abs()
        contenders.append(harness.Contender(name, harness.timed(_solver(name, tiles))))
    series = harness.interleave(contenders, rounds)
    found = {name: one.median() / counts[name][m] for name, one in series.items()}
    print(m, {name: f"{1e6 * seconds:.3g} us" for name, seconds in found.items()}, flush=True)
    return {"m": m, "rounds": rounds, "tiles": {n: c[m] for n, c in counts.items()}, "s": found}


def _solver(name: str, tiles: torch.Tensor) -> Any:
    m = tiles.shape[-1]
    if name in FLOWS:
        return lambda: FLOWS[name].run(tiles, m // 2, m)
    weight = networks.stacked(tiles)
    return lambda: find_mask(weight, f"{m // 2}:{m}T", solver=Exact(), threads=1)


def whole(side: int, rounds: int) -> dict[str, Any]:
    """Seconds of the exact solver on a square matrix, by tile size."""
    generator = torch.Generator().manual_seed(side)
    weight = torch.randn(side, side, generator=generator)
    contenders = [
        harness.Contender(
            str(m),
            harness.timed(
                lambda m=m: find_mask(weight, f"{m // 2}:{m}T", solver=Exact(), threads=1)
            ),
        )
        for m in (4, 8, 16)
    ]
    series = harness.interleave(contenders, rounds)
    return {"side": side, "s": {name: one.median() for name, one in series.items()}}


def growth(by_tile: Sequence[dict[str, Any]], by_side: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Exponents of power laws fitted to the times: in M for one tile, in the number of weights."""
    sizes = [one["m"] for one in by_tile]
    in_m = {name: exponent(sizes, [one["s"][name] for one in by_tile]) for name in by_tile[0]["s"]}
    in_m[PUBLISHED_GROWTH] = exponent(sizes, [m**3 * math.log(m) for m in sizes])
    large = [one for one in by_side if one["side"] >= LARGE]
    weights = [one["side"] ** 2 for one in large]
    in_weights = {
        name: exponent(weights, [one["s"][name] for one in large]) for name in large[0]["s"]
    }
    return {"in_m": in_m, "in_weights": in_weights}


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of y ~ x^p, by least squares of the logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
