"""Solvers: one file each, all given to :func:`transposable.solve`."""

from __future__ import annotations

from typing import Final

from transposable.errors import SolverError
from transposable.solvers.auto import Auto
from transposable.solvers.base import Outcome, Solver
from transposable.solvers.entropic import Entropic
from transposable.solvers.exact import Exact
from transposable.solvers.exhaustive import Exhaustive
from transposable.solvers.greedy import Greedy
from transposable.solvers.groupwise import RowWise, Sequential, Unstructured
from transposable.solvers.reference import Reference
from transposable.solvers.two_approx import TwoApprox

SOLVERS: Final[dict[str, type[Solver]]] = {
    solver.name: solver
    for solver in (
        Auto,
        Exact,
        Entropic,
        Greedy,
        TwoApprox,
        RowWise,
        Sequential,
        Unstructured,
        Exhaustive,
        Reference,
    )
}


def make_solver(solver: str | Solver | type[Solver]) -> Solver:
    """A solver from its name, its class or an instance.

    Raises:
        SolverError: for anything else.

    Example:
        >>> make_solver("exact")
        Exact()
    """
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, type) and issubclass(solver, Solver):
        return solver()
    if isinstance(solver, str) and solver in SOLVERS:
        return SOLVERS[solver]()
    raise SolverError(
        f"solver: received {solver!r}; the solvers are {', '.join(SOLVERS)}; "
        "pass a name, a class or an instance"
    )


__all__ = [
    "SOLVERS",
    "Auto",
    "Entropic",
    "Exact",
    "Exhaustive",
    "Greedy",
    "Outcome",
    "Reference",
    "RowWise",
    "Sequential",
    "Solver",
    "TwoApprox",
    "Unstructured",
    "make_solver",
]
