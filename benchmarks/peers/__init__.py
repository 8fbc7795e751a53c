"""The peers of the exact solver, one file each."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.base import Peer
from benchmarks.peers.highs_lp import HighsLp
from benchmarks.peers.native import OurEntropic, OurExact, OurGreedy, OurTwoApprox
from benchmarks.peers.networkx_flow import NetworkxFlow
from benchmarks.peers.ortools_flow import OrtoolsFlow
from benchmarks.peers.torch_dykstra import TorchDykstra
from benchmarks.peers.torch_greedy import TorchGreedy

PEERS: Final[tuple[Peer, ...]] = (
    OurExact(),
    OrtoolsFlow(),
    NetworkxFlow(),
    HighsLp(),
    TorchDykstra(),
    TorchGreedy(),
    OurTwoApprox(),
    OurGreedy(),
    OurEntropic(),
)

__all__ = ["PEERS", "Peer"]
