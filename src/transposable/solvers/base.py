"""What a solver is: an immutable configuration with a name, given to one ``solve``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from transposable.certificate import Potentials
from transposable.pattern import Pattern, Structure
from transposable.problem import Problem


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a solver hands back: kept [batch, rows, cols] bool, and what it knows about it."""

    kept: torch.Tensor
    bound: float = math.inf
    optimal: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    potentials: Potentials | None = None


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

    @abstractmethod
    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        """Solve; with ``certify`` also give the bound (and potentials) where the solver can."""
