"""networkx' network simplex (pure Python), one digraph per tile."""

from __future__ import annotations

from types import MappingProxyType

import torch

from benchmarks.peers.base import Peer, integer_scores

PEER_BITS = 26


class NetworkxFlow(Peer):
    """The same network as OR-tools'; integer costs, since float costs need not terminate."""

    name = "networkx"
    label = "networkx network simplex"
    exact = True
    needs = ("networkx",)
    sample = MappingProxyType({4: 2048, 8: 512, 16: 256, 32: 64})

    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        import networkx

        kept = torch.zeros(scores.shape, dtype=torch.bool)
        lines = range(m)
        for index, tile in enumerate((-integer_scores(scores, PEER_BITS)).tolist()):
            graph = networkx.DiGraph()
            graph.add_nodes_from(lines, demand=-n)
            graph.add_nodes_from(range(m, 2 * m), demand=n)
            graph.add_edges_from(
                (i, m + j, {"weight": tile[i][j], "capacity": 1}) for i in lines for j in lines
            )
            _, flow = networkx.network_simplex(graph)
            for i in lines:
                for j in lines:
                    kept[index, i, j] = flow[i][m + j] == 1
        return kept
