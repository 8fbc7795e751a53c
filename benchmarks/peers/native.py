"""Our own solvers, through the public call, one thread."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

import torch

import transposable
from benchmarks.peers.base import Peer
from transposable import Pattern
from transposable.solvers import SOLVERS


class Native(Peer):
    """find_mask(weight, pattern, solver=...) on strips of the matrix."""

    whole = True
    solver: ClassVar[str]

    def missing(self) -> str | None:
        if self.solver not in SOLVERS:
            return f"this build of transposable has no solver {self.solver!r}"
        return None

    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        pattern = Pattern(n, m, "transposable")
        return transposable.find_mask(scores, pattern, solver=self.solver, threads=1).tensor


class OurExact(Native):
    """The subject of the benchmark."""

    name = solver = "exact"
    label = "transposable exact"
    exact = True


class OurTwoApprox(Native):
    """The paper's Algorithm 1 in C++."""

    name = solver = "two_approx"
    label = "2-approximation (paper), our C++"


class OurGreedy(Native):
    """Greedy keep and repair in C++."""

    name = solver = "greedy"
    label = "transposable greedy"


class OurEntropic(Native):
    """Entropic projections and rounding in C++."""

    name = solver = "entropic"
    label = "transposable entropic"
    # Iterative: a second's worth is enough.
    sample = MappingProxyType({4: 65536, 8: 16384, 16: 4096, 32: 1024})
