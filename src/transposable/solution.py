"""Solution: the one thing every solver returns."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any

from transposable.certificate import Potentials
from transposable.mask import Mask


class Status(enum.Enum):
    """How a solve ended; the value is the text a user reads."""

    OPTIMAL = "proved optimal: the mask's objective equals the dual bound"
    FEASIBLE = "feasible: the pattern holds, optimality is not proved"
    NOT_OPTIMAL = "not proved optimal: the duality gap exceeds the tolerance of 1e-6"
    INFEASIBLE = "infeasible: the mask violates the pattern"

    @property
    def ok(self) -> bool:
        """Whether the solver delivered what it promises."""
        return self in (Status.OPTIMAL, Status.FEASIBLE)


@dataclass(frozen=True, slots=True)
class Solution:
    """A mask and what is known about it.

    Attributes:
        mask: the mask found.
        objective: sum of the kept scores.
        bound: upper bound on every mask's objective; inf where the solver gives none.
        status: a :class:`Status`.
        stats: figures of the solver: tiles, seconds, threads, ...; never needed to use the mask.
        potentials: dual variables for :func:`transposable.certify`, from ``Exact``.
    """

    mask: Mask
    objective: float
    bound: float
    status: Status
    stats: dict[str, Any] = field(default_factory=dict)
    potentials: Potentials | None = None

    @property
    def gap(self) -> float:
        """(bound - objective) / |objective|: 0 for a proved optimum, inf without a bound."""
        if self.bound == self.objective:
            return 0.0
        if not math.isfinite(self.objective):  # infinite scores were kept: only the proof tells
            return 0.0 if self.status is Status.OPTIMAL else math.inf
        if math.isinf(self.bound):
            return math.inf
        return max(self.bound - self.objective, 0.0) / max(abs(self.objective), 5e-324)
