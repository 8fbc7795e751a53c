"""OR-tools' SimpleMinCostFlow (cost-scaling push-relabel, C++), one network per tile."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks.peers.base import Peer, integer_scores

PEER_BITS = 26


class OrtoolsFlow(Peer):
    """Rows supply N, columns take N, one arc of capacity 1 and cost -a_ij per entry."""

    name = "ortools"
    label = "OR-tools min-cost flow"
    exact = True
    needs = ("ortools",)
    sample = MappingProxyType({4: 65536, 8: 32768, 16: 8192, 32: 2048})

    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        return optimal_masks(scores, n, PEER_BITS)


def optimal_masks(tiles: torch.Tensor, n: int, bits: int) -> torch.Tensor:
    """The optimal masks of tiles [count, m, m] quantised to ``bits`` bits; scores may be negative.

    Raises:
        RuntimeError: if OR-tools does not report an optimum.
    """
    from ortools.graph.python import min_cost_flow

    count, m, _ = tiles.shape
    costs = -integer_scores(tiles, bits).reshape(count, m * m).numpy()
    rows, cols = np.divmod(np.arange(m * m, dtype=np.int32), np.int32(m))
    cols = cols + np.int32(m)
    nodes = np.arange(2 * m, dtype=np.int32)
    supply = np.repeat(np.array([n, -n], np.int64), m)
    capacity = np.ones(m * m, np.int64)
    kept = np.empty((count, m * m), np.bool_)
    for index in range(count):
        network: Any = min_cost_flow.SimpleMinCostFlow()
        arcs = network.add_arcs_with_capacity_and_unit_cost(rows, cols, capacity, costs[index])
        network.set_nodes_supplies(nodes, supply)
        status = network.solve()
        if status != network.OPTIMAL:
            raise RuntimeError(f"OR-tools min-cost flow: tile {index} ended with status {status}")
        kept[index] = network.flows(arcs)
    return torch.from_numpy(kept.reshape(count, m, m))
