"""What a solver is: an immutable configuration with a name, given to one ``solve``."""

from __future__ import annotations

import dataclasses
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from transposable.certificate import Potentials
from transposable.errors import HostRouteWarning
from transposable.kernels import support
from transposable.pattern import Pattern, Structure
from transposable.problem import Problem


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a solver hands back: kept [batch, rows, cols] bool, and what it knows about it.

    ``nans``, of a solver on a GPU: the number of tiles with a NaN, int32 [] on the device, which
    nobody has waited for; such tiles keep nothing.
    """

    kept: torch.Tensor
    bound: float = math.inf
    optimal: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    potentials: Potentials | None = None
    nans: torch.Tensor | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """Base of all solvers; subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]
    structures: ClassVar[tuple[Structure, ...]]
    summary: ClassVar[str]
    promises_optimal: ClassVar[bool] = False
    checks_nan: ClassVar[bool] = False

    def accepts(self, pattern: Pattern) -> bool:
        """Whether this solver finds masks of this pattern."""
        return pattern.structure in self.structures

    def solve(self, problem: Problem, *, certify: bool) -> Outcome:
        """Solve where the scores are; what no kernel takes is copied to the CPU, with a warning."""
        if not support.elsewhere(problem.matrices):
            if not self.checks_nan:
                problem.check_nan()
            return self.run(problem, certify=certify)
        reason = support.why_not(problem.matrices, problem.pattern.m)
        if reason is None:
            outcome = self.on_gpu(problem, certify=certify)
            if outcome is not None:
                return outcome
            reason = f"solver {self.name!r} has no kernel"
        return self._by_way_of_host(problem, certify, reason)

    @abstractmethod
    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        """Solve on the CPU; with ``certify`` also give bound and potentials where it can."""

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome | None:
        """Solve on the GPU where the scores are, or None where that cannot be done.

        Without ``certify`` nothing waits for the device.
        """
        return None

    def _by_way_of_host(self, problem: Problem, certify: bool, reason: str) -> Outcome:
        warnings.warn(
            f"{self.name}: a tensor on {problem.matrices.device} is solved on the CPU, and the "
            f"mask copied back: {reason}",
            HostRouteWarning,
            stacklevel=2,
        )
        device = problem.matrices.device
        host = dataclasses.replace(problem, matrices=problem.matrices.cpu())
        if not self.checks_nan:
            host.check_nan()
        found = self.run(host, certify=certify)
        potentials = found.potentials
        if potentials is not None:
            potentials = Potentials(potentials.rows.to(device), potentials.cols.to(device))
        stats = {**found.stats, "ran_on": "cpu", "why": reason}
        return dataclasses.replace(
            found, kept=found.kept.to(device), potentials=potentials, stats=stats
        )
