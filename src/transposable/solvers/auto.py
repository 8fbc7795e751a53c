"""Auto: the solver that is optimal for the pattern at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transposable.pattern import Pattern, Structure
from transposable.problem import Problem
from transposable.solvers.base import Outcome, Solver
from transposable.solvers.exact import Exact
from transposable.solvers.groupwise import RowWise, Sequential, Unstructured


@dataclass(frozen=True)
class Auto(Solver):
    """Chooses by the pattern: Exact for N:MT, RowWise for N:M, Sequential for N:MS, Unstructured.

    Example:
        >>> Auto().choose(Pattern.parse("4:8T"))
        Exact()
    """

    name: ClassVar[str] = "auto"
    structures: ClassVar[tuple[Structure, ...]] = (
        "row",
        "transposable",
        "sequential",
        "unstructured",
    )
    summary: ClassVar[str] = "the optimal solver of the pattern at hand"
    promises_optimal: ClassVar[bool] = True

    def choose(self, pattern: Pattern) -> Solver:
        """The solver that Auto uses for this pattern."""
        chosen: dict[Structure, Solver] = {
            "transposable": Exact(),
            "row": RowWise(),
            "sequential": Sequential(),
            "unstructured": Unstructured(),
        }
        return chosen[pattern.structure]

    def on_gpu(self, problem: Problem, *, certify: bool) -> Outcome | None:
        return self.choose(problem.pattern).on_gpu(problem, certify=certify)

    def run(self, problem: Problem, *, certify: bool) -> Outcome:
        return self.choose(problem.pattern).run(problem, certify=certify)
